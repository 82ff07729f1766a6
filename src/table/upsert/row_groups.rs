//! Row groups: those of a file that may have one of the ids of a change set. All others are pruned.
//!
//! First by the bounds of their ids in the footer, then by their Bloom filters where reading those is likely to save
//! more than it costs. A row group that has one of the ids is never pruned: bounds and filters that cannot be trusted
//! are ignored.

use std::{collections::BTreeSet, ops::Range};

use deltalake::DeltaTableError;
use parquet::{
    basic::Type,
    bloom_filter::Sbbf,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        statistics::Statistics,
    },
};

use crate::table::{
    data_file::stored::StoredFile,
    ids::{IdBounds, Ids},
};

/// Filters of one file that are in memory at the same time.
const FILTERS_AT_ONCE: usize = 8;
/// More than any filter that pays.
const MAX_FILTER_BYTES: u64 = 4 * 1024 * 1024;
/// How much could be read in the time that a store takes to answer one request.
const REQUEST_BYTES: f64 = 256.0 * 1024.0;

/// The row groups that remain, in order. If a filter cannot be used, its row group remains; if the store does not
/// answer, that is an error.
pub async fn prune(
    stored: &StoredFile,
    footer: &ParquetMetaData,
    ids: &Ids,
) -> Result<BTreeSet<usize>, DeltaTableError> {
    let columns = footer.file_metadata().schema_descr().columns();
    let all = (0..footer.num_row_groups()).collect();
    let Some(column) = columns.iter().position(|column| column.path().string() == "id") else { return Ok(all) };
    let chunk = |row_group: usize| footer.row_group(row_group).column(column);
    let mut remaining: BTreeSet<_> = all;
    remaining.retain(|row_group| ids.may_overlap(bounds(stored, chunk(*row_group))));
    let filters = remaining.iter().filter_map(|row_group| {
        let asked = ids.within_bounds(bounds(stored, chunk(*row_group)))?.count();
        Some((*row_group, filter_range(stored, chunk(*row_group), asked)?))
    });
    let filters: Vec<_> = filters.collect();
    let mut unusable = 0;
    for filters in filters.chunks(FILTERS_AT_ONCE) {
        let ranges: Vec<_> = filters.iter().map(|(_, range)| range.clone()).collect();
        let read = stored.file.key_parts(&ranges).await?;
        for ((row_group, _), bytes) in filters.iter().zip(read) {
            let Some(filter) = trusted_filter(chunk(*row_group), &bytes) else {
                unusable += 1;
                continue;
            };
            let asked = ids.within_bounds(bounds(stored, chunk(*row_group)));
            if asked.is_some_and(|mut asked| !asked.any(|id| filter.check(id))) {
                remaining.remove(row_group);
            }
        }
    }
    if unusable > 0 {
        tracing::warn!(path = %stored.file.path, unusable, "Bloom filters cannot be used, the ids are read instead");
    }
    Ok(remaining)
}

/// The first and last id of a row group. Only statistics in our own files are trusted.
fn bounds<'footer>(stored: &StoredFile, chunk: &'footer ColumnChunkMetaData) -> IdBounds<'footer> {
    let statistics = chunk.statistics().filter(|statistics| stored.own && !statistics.is_min_max_deprecated());
    let text = |bound: Option<&'footer [u8]>| bound.and_then(|bytes| std::str::from_utf8(bytes).ok());
    IdBounds {
        min: text(statistics.and_then(Statistics::min_bytes_opt)),
        max: text(statistics.and_then(Statistics::max_bytes_opt)),
    }
}

/// Where the filter of a row group is, if reading it for this many ids pays. The filters of old writers do not state
/// their length and would need two requests: they are not read.
fn filter_range(stored: &StoredFile, chunk: &ColumnChunkMetaData, asked: usize) -> Option<Range<u64>> {
    let start = u64::try_from(chunk.bloom_filter_offset()?).ok()?;
    let bytes = u64::try_from(chunk.bloom_filter_length()?).ok()?;
    let range = start..start.checked_add(bytes)?;
    let is_plausible = range.end <= stored.file.size_bytes && bytes <= MAX_FILTER_BYTES;
    (is_plausible && chunk.column_type() == Type::BYTE_ARRAY && pays(chunk, bytes, asked)).then_some(range)
}

/// A filter has no checksum, but it must contain the first and the last id of its own row group. Without a filter the
/// ids themselves are read: a lost shortcut is not a reason to fail.
fn trusted_filter(chunk: &ColumnChunkMetaData, bytes: &[u8]) -> Option<Sbbf> {
    let filter = Sbbf::from_bytes(bytes).ok().filter(|filter| filter.num_blocks() > 0)?;
    let statistics = chunk.statistics();
    let first = statistics.filter(|statistics| statistics.min_is_exact()).and_then(Statistics::min_bytes_opt);
    let last = statistics.filter(|statistics| statistics.max_is_exact()).and_then(Statistics::max_bytes_opt);
    let has_both = first.into_iter().chain(last).all(|id| filter.check(id));
    has_both.then_some(filter)
}

/// Is reading the filter likely to save twice what it costs? It saves nothing if one of the ids is really in the row
/// group, and that is known only afterwards.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn pays(chunk: &ColumnChunkMetaData, filter_bytes: u64, asked: usize) -> bool {
    let false_positives = false_positives(chunk.num_values() as f64, filter_bytes as f64);
    let none_passes = (1.0 - false_positives).powf(asked as f64);
    none_passes * chunk.compressed_size() as f64 > 2.0 * filter_bytes as f64 + REQUEST_BYTES
}

/// The share of absent ids that pass a filter. Each id sets one bit in each of the eight words of one block of 32
/// bytes. Blocks get different numbers of ids (a Poisson distribution), and the full ones let most ids pass: the usual
/// formula for Bloom filters gives less than half of the real share.
fn false_positives(rows: f64, filter_bytes: f64) -> f64 {
    const MAX_IDS_PER_BLOCK: i32 = 100;
    let mean = rows * 32.0 / filter_bytes.max(32.0);
    if mean > f64::from(MAX_IDS_PER_BLOCK) / 2.0 {
        return 1.0;
    }
    let mut share_of_blocks = (-mean).exp();
    let mut passing = 0.0;
    for ids in 1..=MAX_IDS_PER_BLOCK {
        share_of_blocks *= mean / f64::from(ids);
        passing += share_of_blocks * (1.0 - (31.0_f64 / 32.0).powi(ids)).powi(8);
    }
    passing
}
