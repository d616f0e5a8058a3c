//! From what a user types to where the files are.
use super::{fetch, HubError, Source};
use crate::format::WsModel;
use std::path::{Path, PathBuf};
use ws_models::registry::aliases;

/// Folder of wsrun's own files: `$WSRUN_HOME`, or `~/.cache/wsrun`.
pub fn home() -> PathBuf {
    if let Some(home) = std::env::var_os("WSRUN_HOME").filter(|h| !h.is_empty()) {
        return home.into();
    }
    let user = std::env::var_os("HOME").filter(|h| !h.is_empty()).map_or_else(|| PathBuf::from("."), PathBuf::from);
    user.join(".cache/wsrun")
}

/// Resolves a path, an alias, a Hub repository id, or any of these with `-wsR` (quantized to R bits), downloading what is missing with a
/// progress bar. Paths win over aliases, local copies under [`home`]`/models/ALIAS` over the Hub.
///
/// # Errors
/// An unknown name (with the nearest ones), a folder without a model, a file that cannot be fetched.
pub fn resolve(name: &str) -> Result<Source, HubError> {
    let path = Path::new(name);
    if !name.is_empty() && path.exists() {
        return local(path);
    }
    if let Some((base, rate)) = packed_name(name) {
        return packed(name, base, rate);
    }
    if let Some(alias) = aliases().iter().find(|a| a.name == name) {
        let copy = home().join("models").join(name);
        return match copy.exists().then(|| local(&copy)) {
            // What an interrupted download leaves is no copy.
            None | Some(Err(HubError::Missing { .. })) => repository(&alias.repo, name),
            Some(copy) => copy,
        };
    }
    let is_repository = name.split('/').count() == 2 && name.split('/').all(is_plain);
    if is_repository {
        return repository(name, name);
    }
    Err(HubError::Unknown { name: name.to_owned(), nearest: nearest(name) })
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// `BASE-wsR` split at its last `-ws`; `None` if what follows is no number.
fn packed_name(name: &str) -> Option<(&str, f64)> {
    let (base, rate) = name.rsplit_once("-ws")?;
    let digits = !rate.is_empty() && rate.chars().all(|c| c.is_ascii_digit() || c == '.');
    Some((base, rate.parse().ok().filter(|_| digits && !base.is_empty())?))
}

fn packed(name: &str, base: &str, rate: f64) -> Result<Source, HubError> {
    if !(1.0..=8.0).contains(&rate) {
        return Err(HubError::Rate { name: name.to_owned(), rate });
    }
    // A local model's packed copy stands beside it, any other's among wsrun's own files.
    let dir = match Path::new(base).exists() {
        true => PathBuf::from(format!("{}-ws{rate}", base.trim_end_matches('/'))),
        false => home().join("packed").join(format!("{}-ws{rate}", base.replace('/', "--"))),
    };
    if WsModel::is_ws(&dir) {
        return Ok(Source::Ws(dir));
    }
    let base = resolve(base).map_err(|error| match error {
        HubError::Unknown { name, .. } => HubError::Unknown { nearest: nearest(&name), name },
        other => other,
    })?;
    Ok(Source::WsOnLoad { base: Box::new(base), rate, dir })
}

fn local(path: &Path) -> Result<Source, HubError> {
    if path.is_file() {
        return match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            true => Ok(Source::Gguf(path.to_owned())),
            false => Err(HubError::Damaged {
                path: path.to_owned(),
                why: "is not a model: give a .gguf file, or the folder that holds config.json and the safetensors".to_owned(),
            }),
        };
    }
    if path.join("config.json").exists() {
        return Ok(if WsModel::is_ws(path) { Source::Ws(path.to_owned()) } else { Source::Folder(path.to_owned()) });
    }
    let io = |error| HubError::Io { action: "read", path: path.to_owned(), error };
    let mut ggufs = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            ggufs.push(file);
        }
    }
    match (ggufs.pop(), ggufs.is_empty()) {
        (Some(file), true) => Ok(Source::Gguf(file)),
        (Some(_), false) => Err(HubError::Damaged { path: path.to_owned(), why: "holds several .gguf files; name one of them".to_owned() }),
        (None, _) => Err(HubError::Missing {
            path: path.join("config.json"),
            fix: "the folder holds neither a Hugging Face model nor a .gguf file".to_owned(),
        }),
    }
}

fn repository(repo: &str, name: &str) -> Result<Source, HubError> {
    let dir = fetch::model(repo, name)?;
    Ok(if WsModel::is_ws(&dir) { Source::Ws(dir) } else { Source::Folder(dir) })
}

fn nearest(name: &str) -> String {
    let base = packed_name(name).map_or(name, |(base, _)| base).to_lowercase();
    let mut close: Vec<(f64, &str)> = aliases().iter().map(|a| (strsim::jaro_winkler(&base, &a.name), a.name.as_str())).collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<String> = close.iter().take_while(|c| c.0 > 0.75).take(3).map(|c| format!("`{}`", c.1)).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!("; did you mean {}", names.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_the_end_of_a_name() {
        assert_eq!(packed_name("llama3-8b-ws2.25"), Some(("llama3-8b", 2.25)));
        assert_eq!(packed_name("a-ws2-ws3"), Some(("a-ws2", 3.0)));
        for name in ["llama3-8b", "x-ws", "x-wsinf", "x-ws-2", "-ws3"] {
            assert_eq!(packed_name(name), None, "{name}");
        }
        assert!(matches!(resolve("smollm2-135m-ws9"), Err(HubError::Rate { .. })));
    }

    #[test]
    fn unknown_names_say_what_is_near() {
        for name in ["smolm2-135m", "smolm2-135m-ws3", "lama3-8b"] {
            let text = resolve(name).unwrap_err().to_string();
            assert!(
                text.contains("did you mean") && text.contains(if name.starts_with('s') { "smollm2-135m" } else { "llama3-8b" }),
                "{text}"
            );
        }
        assert!(resolve("../nowhere/at/all").unwrap_err().to_string().contains("unknown model"));
    }
}
