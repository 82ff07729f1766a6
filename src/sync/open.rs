//! Opening: the rooms of a sync are built from their settings, and a lost state file is recovered from the tables.

use std::sync::{Arc, Mutex, RwLock};

use tokio::task::JoinSet;

use super::{Config, Engine, Error, Export, ProgressBoard, Sharing, Syncer, Turns, sources};
use crate::{
    export::{self, Client},
    fhir::{ResourceType, TransactionTime},
    lease::Lease,
    state::{Found, OpenState, StatePlace},
    table::{self, Root, try_spool_folder},
};

impl Syncer {
    /// Opens the state first: its lock, or its lease, refuses a second fhir-sync with the same one.
    pub async fn open(
        server: export::Config,
        tables: table::Config,
        state: &StatePlace,
        config: Config,
        exports: &[Export],
        progress: ProgressBoard,
    ) -> Result<Self, Error> {
        let (open_state, found) = OpenState::open_at(state).await?;
        try_spool_folder(&config.spool_folder)
            .map_err(|source| Error::SpoolFolder { place: config.spool_folder.display().to_string(), source })?;
        let url = server.server.clone();
        let client = Arc::new(Client::new(server)?);
        let mut root = Root::new(tables)?;
        root.refuse_a_table().await?;
        // After the state: whoever holds that knows that an earlier holder has ended.
        let group = open_state.lease().and_then(|lease| lease.group());
        let lease = match group {
            Some(group) => root.join_lease(open_state.holder(), &group).await?,
            None => root.take_lease(open_state.holder(), open_state.predecessor()).await?,
        };
        let sharing =
            open_state.shared_documents().map(|of| Arc::new(Sharing::new(of.clone(), open_state.holder(), exports)));
        let mut lease_keeper = JoinSet::new();
        lease_keeper.spawn(Lease::keep(Arc::downgrade(&lease)));
        sources::check(&root, &config, &url).await?;
        let engine = Engine::of(&root, config.spark.as_ref())?;
        let turns = Arc::new(Turns::after_run(open_state.state().run));
        let syncer = Self {
            client,
            server: url,
            root,
            engine,
            lease,
            _lease_keeper: Arc::new(lease_keeper),
            seen: Arc::new(RwLock::new(Arc::new(open_state.state().clone()))),
            state_lease: open_state.lease(),
            sharing,
            open_state: Arc::new(Mutex::new(open_state)),
            config,
            progress,
            turns,
            fhir_release: Arc::default(),
        };
        syncer.recover_state(&state.shown(), found, exports).await?;
        Ok(syncer)
    }

    /// Gives the leases of the tables and of the state back. Nothing may be written afterwards.
    pub async fn close(&self) {
        self.lease.release().await;
        if let Some(lease) = &self.state_lease {
            lease.release().await;
        }
    }

    /// The state as it was found: where it was missing or broken, the tables know the watermarks.
    async fn recover_state(&self, place: &str, found: Found, exports: &[Export]) -> Result<(), Error> {
        match found {
            Found::Whole => Ok(()),
            // Who holds an export reads its tables.
            _ if self.shares_exports() => Ok(()),
            Found::Nothing => self.adopt_watermarks(self.known_watermarks(exports).await).await,
            Found::Previous => {
                tracing::warn!(place, "the state file was broken; using the generation before it");
                Ok(())
            }
            Found::Migrated => {
                tracing::warn!(
                    place,
                    "the state file has the old one-field form; its time is kept for /health, and because no table \
                     has a watermark yet, the first sync loads everything"
                );
                self.adopt_watermarks(self.known_watermarks(exports).await).await
            }
            Found::Broken { kept_as } => {
                let known = self.known_watermarks(exports).await;
                if known.is_empty() {
                    // Nothing is written: an empty state in its place would make the next start a full load.
                    return Err(Error::BrokenState { place: place.to_string(), kept_as });
                }
                self.adopt_watermarks(known).await?;
                tracing::warn!(
                    place,
                    kept_as,
                    "the state file was broken; its watermarks were recovered from the tables"
                );
                Ok(())
            }
        }
    }

    /// The watermarks that are in the tables, by export.
    async fn known_watermarks<'a>(&self, exports: &'a [Export]) -> Vec<(&'a Export, Watermarks)> {
        let mut all = Vec::new();
        for export in exports {
            // A table that cannot be opened fails its type in each sync.
            let watermarks = self.watermarks(export).await.into_iter();
            let known: Watermarks =
                watermarks.filter_map(|(resource_type, watermark)| Some((resource_type, watermark.ok()??))).collect();
            if !known.is_empty() {
                all.push((export, known));
            }
        }
        all
    }

    /// Copies watermarks of the tables into the state file.
    async fn adopt_watermarks(&self, known: Vec<(&Export, Watermarks)>) -> Result<(), Error> {
        for (export, watermarks) in known {
            tracing::warn!(
                export = export.name,
                types = watermarks.len(),
                "the state is new, and the watermarks are those of the tables; which loads were still due, such as that \
                 of a patient who joined, only the former state knew: sync with --full-refresh once"
            );
            self.remember_watermarks(export, watermarks).await?;
        }
        // A folder that cannot be written must be noticed before anything is requested from the server.
        self.remember(|_| ()).await
    }
}

/// The watermarks of an export's tables.
type Watermarks = Vec<(ResourceType, TransactionTime)>;
