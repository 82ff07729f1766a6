//! Opening: the rooms of a sync, made from their settings; and a state file that was lost, made again from the tables.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use tokio::sync::OnceCell;

use super::{Config, Error, Export, ProgressSender, Syncer, blocking::blocking, memory::lock};
use crate::{
    export::{self, Client},
    state::{Found, Store},
    table::{self, Root, probe_spool_folder},
};

impl Syncer {
    /// Opens the state file first: whoever holds it is the one who may go on.
    pub async fn open(
        server: export::Config,
        tables: table::Config,
        state_file: &Path,
        config: Config,
        exports: &[Export],
        progress: ProgressSender,
    ) -> Result<Self, Error> {
        let (store, found) = Store::open(state_file)?;
        probe_spool_folder(&config.spool_folder)
            .map_err(|source| Error::SpoolFolder { place: config.spool_folder.display().to_string(), source })?;
        let syncer = Self {
            client: Arc::new(Client::new(server)?),
            root: Root::new(tables)?,
            store: Arc::new(Mutex::new(store)),
            config,
            progress,
            speaks_r4: OnceCell::new(),
        };
        syncer.greet(state_file, found, exports).await?;
        Ok(syncer)
    }

    async fn greet(&self, state_file: &Path, found: Found, exports: &[Export]) -> Result<(), Error> {
        let place = state_file.display();
        match found {
            Found::Whole => Ok(()),
            Found::Nothing => self.read_watermarks(exports).await.map(drop),
            Found::Previous => {
                tracing::warn!(%place, "the state file was broken; going on with the generation before it");
                Ok(())
            }
            Found::Migrated => {
                tracing::warn!(
                    %place,
                    "the state file is of the old one-field form; its time is kept for /health, and because no table \
                     carries a watermark yet, the first sync loads everything"
                );
                self.read_watermarks(exports).await.map(drop)
            }
            Found::Broken { kept_as } => {
                if self.read_watermarks(exports).await? {
                    tracing::warn!(%place, kept_as = %kept_as.display(), "the state file was broken; made again from the tables");
                    return Ok(());
                }
                Err(Error::BrokenState { place: place.to_string(), kept_as: kept_as.display().to_string() })
            }
        }
    }

    /// Copies the watermarks of the tables into the state file; says whether there were any.
    async fn read_watermarks(&self, exports: &[Export]) -> Result<bool, Error> {
        let mut any = false;
        for export in exports {
            let watermarks = self.watermarks(export).await?;
            let known: Vec<_> = watermarks.into_iter().filter_map(|(of, watermark)| Some((of, watermark?))).collect();
            if known.is_empty() {
                continue;
            }
            any = true;
            tracing::info!(export = export.name, types = known.len(), "watermarks found in the tables");
            let name = export.name.clone();
            self.remember(move |state| state.exports.entry(name).or_default().watermarks.extend(known)).await?;
        }
        // Writing now shows a folder that cannot be written before anything is asked of the server.
        let store = Arc::clone(&self.store);
        blocking(move || lock(&store).update(|_| ())).await?;
        Ok(any)
    }
}
