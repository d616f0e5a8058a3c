//! Files from the Hugging Face Hub: the cache first, only what a model needs, clear words when there is no network.
use super::HubError;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::api::Progress;
use hf_hub::{Cache, Repo};
use indicatif::ProgressBar;
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// Small files that a model may have.
const OPTIONAL: [&str; 3] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Fetches a model's config, tokenizer and safetensors; returns the folder that holds them. `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and
/// `HF_HUB_OFFLINE` are respected; nothing is asked of the network when the cache holds all weights.
pub(super) fn model(repo: &str, name: &str) -> Result<PathBuf, HubError> {
    let files = Files::new(Repo::model(repo.to_owned()), name)?;
    if let Some(dir) = files.cached_model()? {
        return Ok(dir);
    }
    files.fetch_model()?;
    // A repository that changed since its first file came leaves two incomplete snapshots; the second pass completes the newer one.
    if files.cached_model()?.is_none() {
        files.fetch_model()?;
    }
    files.cached_model()?.ok_or_else(|| files.error("config.json", "the repository is changing"))
}

/// Fetches one file of a data set.
pub(super) fn dataset_file(repo: &str, file: &str) -> Result<PathBuf, HubError> {
    Files::new(Repo::dataset(repo.to_owned()), repo)?.get(file)
}

/// The shard names of an index: plain file names only, so that nothing outside of the model's folder is read or fetched.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, HubError> {
    let damaged = |why: String| HubError::Damaged { path: index.to_owned(), why };
    let text = std::fs::read_to_string(index).map_err(|error| HubError::Io { action: "read", path: index.to_owned(), error })?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| damaged(format!("is not JSON: {e}")))?;
    let map = value["weight_map"].as_object().ok_or_else(|| damaged("has no weight_map".to_owned()))?;
    let mut names = std::collections::BTreeSet::new();
    for file in map.values() {
        let file = file.as_str().filter(|f| Path::new(f).file_name() == Some(f.as_ref()) && f.ends_with(".safetensors"));
        names.insert(file.ok_or_else(|| damaged("names a shard that is not a plain .safetensors file name".to_owned()))?.to_owned());
    }
    Ok(names.into_iter().collect())
}

struct Files {
    repo: Repo,
    cache: Cache,
    /// `None` under `HF_HUB_OFFLINE`.
    api: Option<Api>,
    name: String,
}

impl Files {
    fn new(repo: Repo, name: &str) -> Result<Self, HubError> {
        let set = |key: &str| std::env::var(key).ok().filter(|v| !v.is_empty());
        let cache = set("HF_HUB_CACHE").map_or_else(Cache::from_env, |dir| Cache::new(dir.into()));
        let offline = set("HF_HUB_OFFLINE").is_some_and(|v| !matches!(v.to_lowercase().as_str(), "0" | "false" | "no" | "off"));
        let mut files = Self { repo, cache: cache.clone(), api: None, name: name.to_owned() };
        if !offline {
            let mut builder = ApiBuilder::from_cache(cache);
            if let Some(endpoint) = set("HF_ENDPOINT") {
                builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
            }
            // The token file stands in HF_HOME, wherever the cache is.
            builder = builder.with_token(set("HF_TOKEN").or_else(|| Cache::from_env().token()));
            files.api = Some(builder.build().map_err(|e| files.error("the repository", &e.to_string()))?);
        }
        Ok(files)
    }

    fn cached(&self, file: &str) -> Option<PathBuf> {
        self.cache.repo(self.repo.clone()).get(file)
    }

    /// The cached snapshot, if it has config, tokenizer and all weights.
    fn cached_model(&self) -> Result<Option<PathBuf>, HubError> {
        let (Some(config), Some(_)) = (self.cached("config.json"), self.cached("tokenizer.json")) else { return Ok(None) };
        let weights = match self.cached(INDEX) {
            Some(index) => shards(&index)?,
            None => vec![SINGLE.to_owned()],
        };
        let complete = weights.iter().all(|file| self.cached(file).is_some());
        Ok(complete.then(|| config.parent().map_or_else(PathBuf::new, Path::to_path_buf)))
    }

    /// Small files first, so that a snapshot with all weights has all files.
    fn fetch_model(&self) -> Result<(), HubError> {
        for file in ["config.json", "tokenizer.json"] {
            self.get(file)?;
        }
        for file in OPTIONAL {
            self.get_if_any(file)?;
        }
        let weights = match self.get_if_any(INDEX)? {
            Some(index) => shards(&index)?,
            None => vec![SINGLE.to_owned()],
        };
        weights.iter().try_for_each(|file| self.get(file).map(drop))
    }

    fn get(&self, file: &str) -> Result<PathBuf, HubError> {
        self.get_if_any(file)?.ok_or_else(|| match self.api {
            Some(_) => self.error(file, "the repository does not have it (status 404)"),
            None => self.error(file, "it is not in the cache and HF_HUB_OFFLINE is set"),
        })
    }

    /// `None` if the repository does not have the file, or if it is not cached when offline.
    fn get_if_any(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        if let Some(path) = self.cached(file) {
            return Ok(Some(path));
        }
        let Some(api) = &self.api else { return Ok(None) };
        // A connection that broke is tried once more. hf-hub's own second try may append the beginning of a file to what is there.
        let download = match self.download(api, file) {
            Err(ApiError::IoError(_)) => self.download(api, file),
            other => other,
        };
        match download {
            Ok(path) => Ok(Some(path)),
            Err(ApiError::LockAcquisition(lock)) => {
                let fix = format!("wait for it and try again (its lock is {})", lock.display());
                Err(HubError::Fetch { repo: self.repo.url(), file: file.to_owned(), why: "another process is fetching it".to_owned(), fix })
            }
            Err(error) => match error.to_string() {
                why if why.ends_with("status: 404") => Ok(None),
                why => Err(self.error(file, &why)),
            },
        }
    }

    /// Downloads what is missing of a file; hf-hub does not see that an answer ends too early, if that does not say how long it is.
    fn download(&self, api: &Api, file: &str) -> Result<PathBuf, ApiError> {
        let size = Cell::new(0);
        let path = api.repo(self.repo.clone()).download_with_progress(file, Bar { bar: ProgressBar::new(0), size: &size })?;
        let bytes = std::fs::metadata(&path)?.len();
        if bytes != size.get() {
            std::fs::remove_file(std::fs::canonicalize(&path)?)?;
            std::fs::remove_file(&path)?;
            return Err(std::io::Error::other(format!("{bytes} bytes came instead of {}", size.get())).into());
        }
        Ok(path)
    }

    fn error(&self, file: &str, why: &str) -> HubError {
        let fix = match self.name.as_str() {
            "smollm2-135m" => "run scripts/get-smollm2.sh, which needs no Hub, or give a local folder or .gguf file".to_owned(),
            _ if why.ends_with("status: 401") || why.ends_with("status: 403") => {
                "check the name; if the repository is gated, accept its licence on the Hub and set HF_TOKEN".to_owned()
            }
            _ => "check the network and the name, or give a local folder or .gguf file".to_owned(),
        };
        HubError::Fetch { repo: self.repo.url(), file: file.to_owned(), why: why.to_owned(), fix }
    }
}

/// hf-hub's bar, and how long it says that the file is.
struct Bar<'a> {
    bar: ProgressBar,
    size: &'a Cell<u64>,
}

impl Progress for Bar<'_> {
    fn init(&mut self, size: usize, file: &str) {
        self.size.set(size as u64);
        Progress::init(&mut self.bar, size, file);
    }

    fn update(&mut self, size: usize) {
        Progress::update(&mut self.bar, size);
    }

    fn finish(&mut self) {
        Progress::finish(&mut self.bar);
    }
}
