//! Candidates: the row groups of a file that may have one of the ids of a change set.
//!
//! Told by the bounds of their ids in the footer, then by their Bloom filters where reading those is likely to save more
//! than it costs. Neither ever leaves out a row group that has one: what cannot be believed counts as unknown.

use std::{collections::BTreeSet, ops::Range};

use deltalake::DeltaTableError;
use parquet::{
    arrow::async_reader::AsyncFileReader as _,
    basic::Type,
    bloom_filter::Sbbf,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        statistics::Statistics,
    },
};

use crate::table::{
    change_set::ids::{IdBounds, Ids},
    data_file::stored::StoredFile,
};

/// Filters of one file that are in memory at the same time.
const FILTERS_AT_ONCE: usize = 8;
/// More than any filter that pays.
const MOST_FILTER_BYTES: u64 = 4 * 1024 * 1024;
/// What else could be read while a store answers one request.
const REQUEST_BYTES: f64 = 256.0 * 1024.0;

impl StoredFile {
    /// In order. A filter that cannot be read leaves its row group among them; a store that does not answer is an error.
    pub async fn candidates(&self, footer: &ParquetMetaData, ids: &Ids) -> Result<BTreeSet<usize>, DeltaTableError> {
        let columns = footer.file_metadata().schema_descr().columns();
        let all = (0..footer.num_row_groups()).collect();
        let Some(column) = columns.iter().position(|column| column.path().string() == "id") else { return Ok(all) };
        let chunk = |row_group: usize| footer.row_group(row_group).column(column);
        let mut candidates: BTreeSet<_> = all;
        candidates.retain(|row_group| ids.may_overlap(self.bounds(chunk(*row_group))));
        let filters = candidates.iter().filter_map(|row_group| {
            let asked = ids.within_bounds(self.bounds(chunk(*row_group)))?.count();
            Some((*row_group, self.filter_range(chunk(*row_group), asked)?))
        });
        let filters: Vec<_> = filters.collect();
        let mut unusable = 0;
        for filters in filters.chunks(FILTERS_AT_ONCE) {
            let ranges = filters.iter().map(|(_, range)| range.clone()).collect();
            let read = self.file.clone().get_byte_ranges(ranges).await?;
            for ((row_group, _), bytes) in filters.iter().zip(read) {
                let Some(filter) = believed(chunk(*row_group), &bytes) else {
                    unusable += 1;
                    continue;
                };
                let asked = ids.within_bounds(self.bounds(chunk(*row_group)));
                if asked.is_some_and(|mut asked| !asked.any(|id| filter.check(id))) {
                    candidates.remove(row_group);
                }
            }
        }
        if unusable > 0 {
            tracing::warn!(path = %self.file.path, unusable, "Bloom filters that cannot be used, the ids are read instead");
        }
        Ok(candidates)
    }

    /// Of the ids of a row group. Only statistics of our own making are believed.
    fn bounds<'footer>(&self, chunk: &'footer ColumnChunkMetaData) -> IdBounds<'footer> {
        let statistics = chunk.statistics().filter(|of| self.own && !of.is_min_max_deprecated());
        let text = |bound: Option<&'footer [u8]>| bound.and_then(|bytes| std::str::from_utf8(bytes).ok());
        IdBounds {
            min: text(statistics.and_then(Statistics::min_bytes_opt)),
            max: text(statistics.and_then(Statistics::max_bytes_opt)),
        }
    }

    /// Where the filter of a row group is, if it is to be asked for so many ids. One whose length is not stated, as old
    /// writers have it, would take two readings.
    fn filter_range(&self, chunk: &ColumnChunkMetaData, asked: usize) -> Option<Range<u64>> {
        let start = u64::try_from(chunk.bloom_filter_offset()?).ok()?;
        let bytes = u64::try_from(chunk.bloom_filter_length()?).ok()?;
        let range = start..start.checked_add(bytes)?;
        let there = range.end <= self.file.size_bytes && bytes <= MOST_FILTER_BYTES;
        (there && chunk.column_type() == Type::BYTE_ARRAY && pays(chunk, bytes, asked)).then_some(range)
    }
}

/// A filter has no checksum, but it must know the first and the last id of its own row group. Without it the ids
/// themselves are read: a shortcut that is lost is no reason to stop.
fn believed(chunk: &ColumnChunkMetaData, bytes: &[u8]) -> Option<Sbbf> {
    let filter = Sbbf::from_bytes(bytes).ok().filter(|filter| filter.num_blocks() > 0)?;
    let statistics = chunk.statistics();
    let first = statistics.filter(|of| of.min_is_exact()).and_then(Statistics::min_bytes_opt);
    let last = statistics.filter(|of| of.max_is_exact()).and_then(Statistics::max_bytes_opt);
    let knows_both = first.into_iter().chain(last).all(|id| filter.check(id));
    knows_both.then_some(filter)
}

/// Is it likely to save twice what it costs? It saves nothing if one of the ids is really there, which only reading tells.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn pays(chunk: &ColumnChunkMetaData, filter_bytes: u64, asked: usize) -> bool {
    let false_positives = false_positives(chunk.num_values() as f64, filter_bytes as f64);
    let none_passes = (1.0 - false_positives).powf(asked as f64);
    none_passes * chunk.compressed_size() as f64 > 2.0 * filter_bytes as f64 + REQUEST_BYTES
}

/// The share of the ids that are not there and pass. Each id sets a bit in each of the eight words of one block of 32
/// bytes. How many ids a block has differs, and the full ones weigh most: the usual formula for Bloom filters promises
/// less than half of what comes.
fn false_positives(rows: f64, filter_bytes: f64) -> f64 {
    const MOST_OF_A_BLOCK: i32 = 100;
    let mean = rows * 32.0 / filter_bytes.max(32.0);
    if mean > f64::from(MOST_OF_A_BLOCK) / 2.0 {
        return 1.0;
    }
    let mut share_of_blocks = (-mean).exp();
    let mut passing = 0.0;
    for ids in 1..=MOST_OF_A_BLOCK {
        share_of_blocks *= mean / f64::from(ids);
        passing += share_of_blocks * (1.0 - (31.0_f64 / 32.0).powi(ids)).powi(8);
    }
    passing
}
