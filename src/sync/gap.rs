//! A gap: why rows that a full load lacks may still be on the server, so that they are kept (rules 21 and 98).
//!
//! Where a type was loaded in full because its watermark no longer counted, rows that it kept are remembered: each run
//! names them, until a full load has shown that they are gone or still there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, Mode, Run, intake::ReceivedType};
use crate::{fhir::ResourceType, table::Upsert};

/// What a full load lacks, or may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gap {
    /// Lines that are no resources may be those of missing rows.
    Quarantine,
    /// The server reported missing data, in the place of resources or in its outcomes, and the operator accepts that.
    AcceptedErrors,
    /// A file of a type that FHIR does not know was not read to its end, or has errors in the place of resources.
    UnknownFile,
    /// Its rows came in files of other types only, or of none: its own may be missing.
    OwnFiles,
}

impl Gap {
    /// In what was received of a type; `is_bad_in_other_files` says that files which are not its own have lines that
    /// are no resources, and that may be of this type. What the server informs about, and what nobody asked for, is no
    /// gap.
    pub fn of(received: &ReceivedType, is_bad_in_other_files: bool) -> Option<Self> {
        let lines = received.lines;
        if lines.quarantined > 0 || is_bad_in_other_files {
            Some(Self::Quarantine)
        } else if lines.errors > 0 {
            Some(Self::AcceptedErrors)
        } else if received.gap_of_other_files.is_some() {
            received.gap_of_other_files
        } else if received.files == 0 && lines.unfiled == 0 && lines.rerouted > 0 {
            Some(Self::OwnFiles)
        } else {
            None
        }
    }

    fn because(self) -> &'static str {
        match self {
            Self::Quarantine => {
                "lines in quarantine may be theirs (fhir-sync quarantine list); when the server has mended these, a full \
                 refresh removes what is missing"
            }
            Self::AcceptedErrors => {
                "the server reported errors, and sync.accept_reported_errors accepts that their data are missing"
            }
            Self::UnknownFile => {
                "a file of a type that FHIR does not know may have them; a note says what is wrong with it"
            }
            Self::OwnFiles => "its lines came in files of other types only, or of none, so that its own may be missing",
        }
    }

    /// For the operator.
    pub fn remark(self, of: ResourceType, missing: u64) -> String {
        format!(
            "{missing} rows of {of} are missing in the full load and are kept: {}. If the server has really deleted them: \
             {}",
            self.because(),
            way_out(of)
        )
    }
}

/// Removes the rows that a full load lacks, by the operator's word.
pub fn way_out(of: ResourceType) -> String {
    format!("fhir-sync sync --full-refresh --allow-empty {of}")
}

/// Another engine does not look for the returned rows; where it reconciles, they are missing rows.
pub fn note_of_unchecked_rows(resource_type: ResourceType, upsert: &Upsert, is_spark: bool) -> Option<String> {
    let stay = upsert.extent.removes_returned() && upsert.reconcile.is_none() && is_spark;
    stay.then(|| {
        format!(
            "{resource_type} was loaded in full; where its table was restored, Spark does not look for rows whose deletion \
             was reported since: compare it with _fhir_sync/deleted"
        )
    })
}

impl Run<'_> {
    /// Names the rows that an earlier load kept. From time to time the type is loaded in full again: the gap may be
    /// closed. A full refresh does that anyway.
    pub(super) async fn name_kept_rows(&mut self) -> Result<(), Error> {
        if self.mode == Mode::FullRefresh {
            return Ok(());
        }
        let known = self.syncer.export_state(self.export);
        let mut due = BTreeMap::new();
        for (of, kept) in known.kept_rows {
            if !self.export.types.contains(&of) || known.reload.contains_key(&of) {
                continue;
            }
            if !self.is_recent(kept.loaded_at) {
                due.insert(of, kept.reason.into());
                continue;
            }
            self.report.remarks.push(format!(
                "{of} was loaded in full, because {}, and kept {} rows that the server may have deleted; it is loaded in \
                 full again after sync.recheck_absent. If the server has really deleted them: {}",
                kept.reason,
                kept.rows,
                way_out(of)
            ));
        }
        if due.is_empty() {
            return Ok(());
        }
        self.syncer.remember_export(self.export, move |state| state.reload.extend(due)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Extent, Reconcile};

    #[test]
    fn the_report_names_a_restored_table_in_which_spark_does_not_look_for_deleted_rows() {
        let named =
            |upsert: &Upsert, is_spark| note_of_unchecked_rows(ResourceType::PATIENT, upsert, is_spark).is_some();
        let restored = Upsert { extent: Extent::Whole { removes_returned: true }, ..Upsert::default() };
        assert!(named(&restored, true));
        assert!(!named(&restored, false), "this program looks for them");
        assert!(!named(&Upsert { reconcile: Some(Reconcile::NONE), ..restored }, true), "they are missing rows");
        assert!(!named(&Upsert::default(), true));
    }
}
