//! The memory budget: how much memory each change set of an export may take, so that all together stay below the limit.
//!
//! Three quarters are for rows, a twelfth for entries of the index, an eighth for the shard that is loaded while a
//! change set is read, and the rest for ids. A budget has no minimum: a change set with a small one writes to the disk
//! sooner.

/// How many change sets of an export need memory, and for what.
#[derive(Clone, Copy, Debug)]
pub struct MemoryDemand {
    /// Types that may receive something, if only deletions.
    pub types: usize,
    /// Types that receive rows, for tables that already have some.
    pub waiting: usize,
    /// Types that receive rows, for tables that are empty.
    pub first_loads: usize,
    /// Types whose files are downloaded at the same time.
    pub at_once: usize,
    /// Change sets that are read at the same time.
    pub read_at_once: usize,
}

/// How much one change set may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Rows that are in memory until the commit.
    pub waiting_bytes: usize,
    /// Rows that wait to be divided by partition.
    pub window_bytes: usize,
    /// Rows that are being written into data files.
    pub first_load_bytes: usize,
    /// Entries of the index before they go to the spool.
    pub entries_bytes: usize,
    /// The shard that is loaded.
    pub shard_bytes: usize,
    /// Ids that are kept one by one.
    pub ids_bytes: usize,
}

impl MemoryBudget {
    /// Divides `memory_bytes` by the demand.
    ///
    /// Rows for a table that has some wait until the end. Only a quarter of their part is for rows in memory: when the
    /// commit begins, it needs memory for row groups, and a disk keeps rows well. Rows for an empty table leave the
    /// memory with the last file of their type, so only types that are downloaded at the same time share that part.
    pub fn of(memory_bytes: usize, demand: MemoryDemand) -> Self {
        let MemoryDemand { types, waiting, first_loads, at_once, read_at_once } = demand;
        let entries_bytes = memory_bytes / 12;
        let (shard_bytes, ids_bytes) = (memory_bytes / 8, memory_bytes / 24);
        let rows_bytes = (memory_bytes - entries_bytes - shard_bytes - ids_bytes) / (waiting + first_loads).max(1);
        Self {
            waiting_bytes: rows_bytes / 4,
            window_bytes: rows_bytes / 6,
            first_load_bytes: rows_bytes.saturating_mul(first_loads) / first_loads.min(at_once).max(1),
            entries_bytes: entries_bytes / types.max(1),
            shard_bytes: shard_bytes / read_at_once.max(1),
            // A change set that is read has a second copy of its ids.
            ids_bytes: ids_bytes / (types + read_at_once).max(1),
        }
    }

    /// The budget of the only change set.
    pub fn alone(memory_bytes: usize) -> Self {
        Self::of(memory_bytes, MemoryDemand { types: 1, waiting: 0, first_loads: 1, at_once: 1, read_at_once: 1 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::change_set::window::HALVES;

    proptest! {
        #[test]
        fn the_budgets_of_an_export_never_add_up_to_more_than_its_memory(
            memory_bytes in prop_oneof![0usize..1 << 20, 1usize << 20..1 << 36],
            (waiting, first_loads, deletions_only) in (0usize..150, 0usize..150, 0usize..150),
            (at_once, read_at_once) in (1usize..64, 1usize..16),
        ) {
            let types = waiting + first_loads + deletions_only;
            let budget = MemoryBudget::of(memory_bytes, MemoryDemand { types, waiting, first_loads, at_once, read_at_once });
            // What is divided is in memory twice.
            let of_waiting = budget.waiting_bytes + 2 * HALVES * budget.window_bytes;
            let rows = waiting * of_waiting + first_loads.min(at_once) * budget.first_load_bytes;
            let index = types * budget.entries_bytes + read_at_once * budget.shard_bytes;
            let ids = (types + read_at_once) * budget.ids_bytes;
            prop_assert!(rows + index + ids <= memory_bytes, "{budget:?}");
        }
    }

    #[test]
    fn in_a_first_load_of_many_types_each_has_enough_memory_for_row_groups() {
        let demand = MemoryDemand { types: 140, waiting: 0, first_loads: 140, at_once: 4, read_at_once: 2 };
        let budget = MemoryBudget::of(256 << 20, demand);
        assert!(budget.first_load_bytes >= 47 << 20, "{budget:?}");
        assert!(budget.entries_bytes >= 150 << 10 && budget.shard_bytes >= 15 << 20, "{budget:?}");
    }
}
