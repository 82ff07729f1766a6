//! Statistics of a data file, as its entry in the log states them.

use chrono::{DateTime, Datelike as _};
use parquet::{
    basic::LogicalType,
    file::{metadata::ParquetMetaData, statistics::Statistics},
};
use serde_json::{Map, Value, json};

/// How many rows the file has, and for each of the `leading` columns the smallest and largest value and the number of
/// nulls.
pub fn statistics(metadata: &ParquetMetaData, leading: usize) -> Value {
    let (mut min, mut max, mut nulls) = (Map::new(), Map::new(), Map::new());
    for column in 0..metadata.file_metadata().schema_descr().num_columns() {
        let descriptor = metadata.file_metadata().schema_descr().column(column);
        // Leading columns are flat, so they are the first leaves as well.
        let [name] = descriptor.path().parts() else { break };
        if column >= leading {
            break;
        }
        let chunks = metadata.row_groups().iter().map(|row_group| row_group.column(column).statistics());
        let Some(of_row_groups) =
            chunks.map(|of| column_statistics(of?, descriptor.logical_type_ref())).collect::<Option<Vec<_>>>()
        else {
            continue;
        };
        nulls.insert(name.clone(), of_row_groups.iter().map(|of| of.nulls).sum::<u64>().into());
        if let Some(bound) = of_row_groups.iter().filter_map(|of| of.min.clone()).min() {
            min.extend(bound.stated_min().map(|bound| (name.clone(), bound)));
        }
        if let Some(bound) = of_row_groups.into_iter().filter_map(|of| of.max).max() {
            max.extend(bound.stated_max().map(|bound| (name.clone(), bound)));
        }
    }
    json!({
        "numRecords": metadata.file_metadata().num_rows(),
        "minValues": min,
        "maxValues": max,
        "nullCount": nulls,
    })
}

/// Of one column, in one row group.
struct ColumnStatistics {
    min: Option<Bound>,
    max: Option<Bound>,
    nulls: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    Text(String),
    InstantMicros(i64),
}

fn column_statistics(statistics: &Statistics, logical: Option<&LogicalType>) -> Option<ColumnStatistics> {
    let nulls = statistics.null_count_opt()?;
    let (min, max) = match (statistics, logical) {
        (Statistics::ByteArray(of), _) => {
            let text =
                |bytes: &parquet::data_type::ByteArray| bytes.as_utf8().ok().map(|text| Bound::Text(text.to_owned()));
            (of.min_opt().and_then(text), of.max_opt().and_then(text))
        }
        (Statistics::Int64(of), Some(LogicalType::Timestamp(_))) => {
            (of.min_opt().copied().map(Bound::InstantMicros), of.max_opt().copied().map(Bound::InstantMicros))
        }
        _ => return None,
    };
    Some(ColumnStatistics { min, max, nulls })
}

/// Longer texts are cut, as Spark cuts them.
const MAX_STATED_CHARS: usize = 32;

impl Bound {
    /// `None` where readers of the log could not read the bound.
    fn stated_min(&self) -> Option<Value> {
        match self {
            Self::Text(text) => Some(text.chars().take(MAX_STATED_CHARS).collect::<String>().into()),
            Self::InstantMicros(micros) => instant(*micros),
        }
    }

    /// A text that is cut must become larger than the whole one was. An instant need not: readers add a millisecond to
    /// it.
    fn stated_max(&self) -> Option<Value> {
        match self {
            Self::Text(text) if text.chars().nth(MAX_STATED_CHARS).is_none() => Some(text.as_str().into()),
            Self::Text(text) => Some(text.chars().take(MAX_STATED_CHARS).chain([char::MAX]).collect::<String>().into()),
            Self::InstantMicros(micros) => instant(*micros),
        }
    }
}

/// In milliseconds, rounded down, as the protocol wants it. Polars and delta-rs cannot read a year beyond 0001 to 9999;
/// a bound that was moved into these years would hide rows, so there is none.
fn instant(micros: i64) -> Option<Value> {
    let instant = DateTime::from_timestamp_micros(micros)?;
    let is_readable = (1..=9999).contains(&instant.year());
    is_readable.then(|| instant.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_beyond_the_years_0001_to_9999_is_not_stated() {
        let stated = |text: &str| instant(DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros());
        assert_eq!(stated("0001-01-01T00:00:00Z"), Some("0001-01-01T00:00:00.000Z".into()));
        assert_eq!(stated("9999-12-31T23:59:59.9999Z"), Some("9999-12-31T23:59:59.999Z".into()));
        assert_eq!(stated("0001-01-01T00:00:00+14:00"), None);
        assert_eq!(stated("9999-12-31T23:59:59-12:00"), None);
        assert_eq!(instant(i64::MAX), None);
    }
}
