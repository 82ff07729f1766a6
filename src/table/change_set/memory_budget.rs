//! Shares: how much memory each change set of an export may take, so that all of them together stay below what is allowed.
//!
//! Three quarters are for rows, a twelfth for the entries of the indices, an eighth for what is loaded of those while they are
//! read, the rest for ids. Nobody has a floor below which a share cannot fall: whoever has little goes to the disk sooner.

/// Who shares the memory of an export.
#[derive(Clone, Copy, Debug)]
pub struct MemoryDemand {
    /// Types that may get something, if only deletions.
    pub types: usize,
    /// Types of which rows come, into tables that have rows already.
    pub waiting: usize,
    /// Types of which rows come, into tables that are empty.
    pub appending: usize,
    /// Types of which rows come at the same time.
    pub at_once: usize,
    /// Change sets that are read at the same time.
    pub read_at_once: usize,
}

/// What one change set may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Rows that wait for the commit.
    pub waiting_bytes: usize,
    /// Rows on their way into data files.
    pub appending_bytes: usize,
    /// Entries of the index before they go to the spool.
    pub entries_bytes: usize,
    /// What is loaded of the index at once.
    pub shard_bytes: usize,
    /// Ids that are known one by one.
    pub ids_bytes: usize,
}

impl MemoryBudget {
    /// Of `memory_bytes` that are shared by all of `demand`.
    ///
    /// Those whose rows wait keep their share to the end; what is appended leaves the memory with the last file of its type,
    /// so only those that arrive at the same time share it.
    pub fn of(memory_bytes: usize, demand: MemoryDemand) -> Self {
        let MemoryDemand { types, waiting, appending, at_once, read_at_once } = demand;
        let entries_bytes = memory_bytes / 12;
        let (shard_bytes, ids_bytes) = (memory_bytes / 8, memory_bytes / 24);
        let waiting_bytes = (memory_bytes - entries_bytes - shard_bytes - ids_bytes) / (waiting + appending).max(1);
        Self {
            waiting_bytes,
            appending_bytes: waiting_bytes.saturating_mul(appending) / appending.min(at_once).max(1),
            entries_bytes: entries_bytes / types.max(1),
            shard_bytes: shard_bytes / read_at_once.max(1),
            // Whoever reads has another copy.
            ids_bytes: ids_bytes / (types + read_at_once).max(1),
        }
    }

    /// Of a change set that shares with nobody.
    pub fn alone(memory_bytes: usize) -> Self {
        Self::of(memory_bytes, MemoryDemand { types: 1, waiting: 0, appending: 1, at_once: 1, read_at_once: 1 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_shares_of_an_export_never_add_up_to_more_than_its_memory(
            memory_bytes in prop_oneof![0usize..1 << 20, 1usize << 20..1 << 36],
            (waiting, appending, deletions_only) in (0usize..150, 0usize..150, 0usize..150),
            (at_once, read_at_once) in (1usize..64, 1usize..16),
        ) {
            let types = waiting + appending + deletions_only;
            let budget = MemoryBudget::of(memory_bytes, MemoryDemand { types, waiting, appending, at_once, read_at_once });
            let rows = waiting * budget.waiting_bytes + appending.min(at_once) * budget.appending_bytes;
            let index = types * budget.entries_bytes + read_at_once * budget.shard_bytes;
            let ids = (types + read_at_once) * budget.ids_bytes;
            prop_assert!(rows + index + ids <= memory_bytes, "{budget:?}");
        }
    }

    #[test]
    fn a_first_load_of_many_types_leaves_each_enough_for_row_groups() {
        let demand = MemoryDemand { types: 140, waiting: 0, appending: 140, at_once: 4, read_at_once: 2 };
        let budget = MemoryBudget::of(256 << 20, demand);
        assert!(budget.appending_bytes >= 47 << 20, "{budget:?}");
        assert!(budget.entries_bytes >= 150 << 10 && budget.shard_bytes >= 15 << 20, "{budget:?}");
    }
}
