//! What a stopped run leaves for the next one: the calibration tokens and a report of every finished block, beside its shard.
use super::{LayerReport, Options, QuantizeError};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

const STATE: &str = "quantize-state.json";

/// Progress of one run.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    /// Hash of the model's configuration and embedding, of the codes, and of the version.
    model: String,
    options: Options,
    pub(crate) sequences: Vec<Vec<u32>>,
    /// Reports of the blocks whose shards are complete.
    pub(crate) blocks: Vec<Vec<LayerReport>>,
}

/// The folder of an unfinished run.
pub(crate) struct Checkpoint {
    pub(crate) folder: PathBuf,
    pub(crate) state: State,
}

impl Checkpoint {
    /// Folder where the run for `dir` works.
    pub(crate) fn folder(dir: &Path) -> PathBuf {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        dir.with_file_name(name)
    }

    /// The stopped run for `dir`, if there is one; an error if it is another model's, had other options or is another version's.
    pub(crate) fn load(dir: &Path, model: &str, options: &Options) -> Result<Option<Self>, QuantizeError> {
        let folder = Self::folder(dir);
        let text = match std::fs::read_to_string(folder.join(STATE)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(QuantizeError::Read { path: folder.join(STATE), error }),
        };
        match serde_json::from_str::<State>(&text) {
            Ok(state) if state.model == model && state.options == *options => Ok(Some(Self { folder, state })),
            _ => Err(QuantizeError::OtherRun { path: folder }),
        }
    }

    /// Starts a run.
    pub(crate) fn start(dir: &Path, model: String, options: &Options, sequences: Vec<Vec<u32>>) -> Result<Self, QuantizeError> {
        let folder = Self::folder(dir);
        std::fs::create_dir_all(&folder).map_err(|error| QuantizeError::Write { path: folder.clone(), error })?;
        let checkpoint = Self { folder, state: State { model, options: options.clone(), sequences, blocks: Vec::new() } };
        checkpoint.save()?;
        Ok(checkpoint)
    }

    /// Notes a block whose shard is written.
    pub(crate) fn finished(&mut self, block: Vec<LayerReport>) -> Result<(), QuantizeError> {
        self.state.blocks.push(block);
        self.save()
    }

    /// Removes what a killed run was writing, lets `finish` turn the folder into the model `dir`, and removes the state last: a run that is stopped
    /// in between loses nothing.
    pub(crate) fn complete(&self, dir: &Path, finish: impl FnOnce(&Path) -> Result<(), QuantizeError>) -> Result<(), QuantizeError> {
        let write = |path: &Path, error| QuantizeError::Write { path: path.to_owned(), error };
        for entry in std::fs::read_dir(&self.folder).map_err(|error| write(&self.folder, error))?.flatten() {
            // The prefix that `tempfile` gives.
            if entry.file_name().as_encoded_bytes().starts_with(b".tmp") {
                std::fs::remove_file(entry.path()).map_err(|error| write(&entry.path(), error))?;
            }
        }
        finish(&self.folder)?;
        let state = dir.join(STATE);
        std::fs::remove_file(&state).map_err(|error| write(&state, error))
    }

    fn save(&self) -> Result<(), QuantizeError> {
        let path = self.folder.join(STATE);
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            serde_json::to_writer(&mut file, &self.state)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|error| QuantizeError::Write { path: path.clone(), error })
    }
}
