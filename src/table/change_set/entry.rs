//! An index entry: what the index keeps of one received row or deletion.
//!
//! An entry has the [`IdHash`] instead of the id, so that it is small however long the id is; only that of a deletion
//! has the id as well. Entries are kept as bytes, little-endian and back to back. That of a row takes at most 69; a
//! value that a version lacks takes none.

use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};

use chrono::{DateTime, Utc};

use crate::fhir::Version;

/// 128 bits that identify an id: a keyed hash, whose key is drawn at random for each change set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IdHash {
    pub high: u64,
    pub low: u64,
}

impl Hash for IdHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

/// Hashes ids with the key of one change set.
#[derive(Clone)]
pub struct IdHasher(RandomState);

impl IdHasher {
    pub fn new() -> Self {
        Self(RandomState::new())
    }

    /// Two ids with the same hash would become one row, and a server could choose its ids. So the hash is the keyed one
    /// of the standard library, which resists chosen inputs; faster hashes with a seed do not promise that. It
    /// gives 64 bits, so it is read twice, the second time after one more byte that no id can end with.
    pub fn of(&self, id: &str) -> IdHash {
        let mut hasher = self.0.build_hasher();
        hasher.write(id.as_bytes());
        let low = hasher.finish();
        hasher.write_u8(0xff);
        IdHash { high: hasher.finish(), low }
    }
}

/// The index of a file in the `output` of the manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct OutputIndex(pub u32);

/// Where a row is in the export.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Position {
    pub output: OutputIndex,
    pub line: u64,
}

/// Numbers the chunks of a change set: spooled batches, or the data files of a first load.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkIndex(pub u32);

/// Where the columns of a row are: in which chunk of the change set, and as which row of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RowLocation {
    pub chunk: ChunkIndex,
    pub row: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IndexEntry {
    Row(RowEntry),
    Deletion { id: Box<str>, at: Option<DateTime<Utc>> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowEntry {
    pub version: Version,
    pub hash: u64,
    pub position: Position,
    pub location: RowLocation,
}

/// An entry of a row whose location is not known yet.
#[derive(Clone, Copy)]
pub struct NewEntry {
    pub version: Version,
    pub hash: u64,
    pub position: Position,
}

impl NewEntry {
    pub fn at(self, location: RowLocation) -> IndexEntry {
        let Self { version, hash, position } = self;
        IndexEntry::Row(RowEntry { version, hash, position, location })
    }
}

/// An entry of a row takes no more.
const MAX_ROW_BYTES: usize = 69;

const DELETION: u8 = 1;
const SUBSETTED: u8 = 2;
/// Which of the times and numbers the entry has, in this order.
const FIRST: u8 = 4;
const SECOND: u8 = 8;
const THIRD: u8 = 16;

impl IndexEntry {
    /// Appends the entry to `out`. The time of a deletion keeps its microseconds.
    pub fn encode(&self, id_hash: IdHash, out: &mut Vec<u8>) {
        out.reserve(MAX_ROW_BYTES);
        out.extend_from_slice(&id_hash.high.to_le_bytes());
        out.extend_from_slice(&id_hash.low.to_le_bytes());
        match self {
            Self::Row(RowEntry { version, hash, position, location }) => {
                encode_version(version, 0, out);
                out.extend_from_slice(&hash.to_le_bytes());
                out.extend_from_slice(&position.output.0.to_le_bytes());
                out.extend_from_slice(&position.line.to_le_bytes());
                out.extend_from_slice(&location.chunk.0.to_le_bytes());
                out.extend_from_slice(&location.row.to_le_bytes());
            }
            Self::Deletion { id, at } => {
                out.push(DELETION | if at.is_some() { FIRST } else { 0 });
                out.extend(at.map(|at| at.timestamp_micros().to_le_bytes()).into_iter().flatten());
                out.extend((id.len() as u64).to_le_bytes());
                out.extend(id.as_bytes());
            }
        }
    }

    /// Takes the first entry off `bytes`; `None` where they do not begin with one.
    pub fn decode(bytes: &mut &[u8]) -> Option<(IdHash, Self)> {
        let id_hash = IdHash { high: number(bytes)?, low: number(bytes)? };
        let [flags] = take(bytes)?;
        if flags & DELETION != 0 {
            let at = if flags & FIRST == 0 {
                None
            } else {
                Some(DateTime::from_timestamp_micros(i64::from_le_bytes(take(bytes)?))?)
            };
            let id_bytes = usize::try_from(number(bytes)?).ok()?;
            let (id, rest) = bytes.split_at_checked(id_bytes)?;
            *bytes = rest;
            return Some((id_hash, Self::Deletion { id: std::str::from_utf8(id).ok()?.into(), at }));
        }
        let version = decode_version(flags, bytes)?;
        let hash = number(bytes)?;
        let position = Position { output: OutputIndex(u32::from_le_bytes(take(bytes)?)), line: number(bytes)? };
        let chunk = ChunkIndex(u32::from_le_bytes(take(bytes)?));
        let location = RowLocation { chunk, row: u32::from_le_bytes(take(bytes)?) };
        Some((id_hash, Self::Row(RowEntry { version, hash, position, location })))
    }
}

/// Appends flags and numbers of a version. The flag [`DELETION`] is not one of them, and may be among `more_flags`.
pub fn encode_version(version: &Version, more_flags: u8, out: &mut Vec<u8>) {
    let numbers = [
        (FIRST, version.last_updated_micros.map(i64::to_le_bytes)),
        (SECOND, version.version_id.map(u64::to_le_bytes)),
        (THIRD, version.transaction_time_micros.map(i64::to_le_bytes)),
    ];
    let there = numbers.iter().filter(|(_, number)| number.is_some()).fold(more_flags, |flags, (flag, _)| flags | flag);
    out.push(there | if version.subsetted { SUBSETTED } else { 0 });
    for number in numbers.into_iter().filter_map(|(_, number)| number) {
        out.extend_from_slice(&number);
    }
}

/// The version with these flags, whose numbers are the next bytes.
pub fn decode_version(flags: u8, bytes: &mut &[u8]) -> Option<Version> {
    let numbers = |bytes: &mut &[u8], flag| if flags & flag == 0 { Some(None) } else { take(bytes).map(Some) };
    Some(Version {
        last_updated_micros: numbers(bytes, FIRST)?.map(i64::from_le_bytes),
        version_id: numbers(bytes, SECOND)?.map(u64::from_le_bytes),
        transaction_time_micros: numbers(bytes, THIRD)?.map(i64::from_le_bytes),
        subsetted: flags & SUBSETTED != 0,
    })
}

pub fn number(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

pub fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_row() -> impl Strategy<Value = IndexEntry> {
        let version = (any::<Option<i64>>(), any::<Option<u64>>(), any::<Option<i64>>(), any::<bool>());
        let version = version.prop_map(|(last_updated_micros, version_id, transaction_time_micros, subsetted)| {
            Version { last_updated_micros, version_id, transaction_time_micros, subsetted }
        });
        (version, any::<u64>(), any::<(u32, u64)>(), any::<(u32, u32)>()).prop_map(
            |(version, hash, (output, line), (chunk, row))| {
                let position = Position { output: OutputIndex(output), line };
                let location = RowLocation { chunk: ChunkIndex(chunk), row };
                IndexEntry::Row(RowEntry { version, hash, position, location })
            },
        )
    }

    fn any_deletion() -> impl Strategy<Value = IndexEntry> {
        let at = proptest::option::of(
            (-1i64 << 50..1 << 50).prop_map(|micros| DateTime::from_timestamp_micros(micros).unwrap()),
        );
        (".{0,9}", at).prop_map(|(id, at)| IndexEntry::Deletion { id: id.into(), at })
    }

    proptest! {
        #[test]
        fn entries_are_decoded_as_encoded_and_a_truncated_one_is_refused(
            entries in proptest::collection::vec(prop_oneof![any_row(), any_deletion()], 0..20),
        ) {
            let hasher = IdHasher::new();
            let mut bytes = Vec::new();
            for (index, entry) in entries.iter().enumerate() {
                entry.encode(hasher.of(&index.to_string()), &mut bytes);
            }
            let mut rest = bytes.as_slice();
            for (index, entry) in entries.iter().enumerate() {
                prop_assert_eq!(IndexEntry::decode(&mut rest), Some((hasher.of(&index.to_string()), entry.clone())));
            }
            prop_assert!(rest.is_empty());
            let last = entries.last().map_or(0, |entry| {
                let mut last = Vec::new();
                entry.encode(hasher.of("x"), &mut last);
                last.len()
            });
            for cut in 1..last {
                prop_assert_eq!(IndexEntry::decode(&mut &bytes[bytes.len() - last..bytes.len() - cut]), None);
            }
        }
    }

    #[test]
    fn a_row_takes_at_most_69_bytes() {
        let version = Version {
            last_updated_micros: Some(1),
            version_id: Some(1),
            transaction_time_micros: Some(1),
            subsetted: true,
        };
        let position = Position { output: OutputIndex(1), line: 1 };
        let row = RowEntry { version, hash: 1, position, location: RowLocation { chunk: ChunkIndex(1), row: 1 } };
        let mut bytes = Vec::new();
        IndexEntry::Row(row).encode(IdHasher::new().of("a"), &mut bytes);
        assert_eq!(bytes.len(), MAX_ROW_BYTES);
    }

    #[test]
    fn hashes_of_an_id_are_equal_within_a_change_set_only() {
        let hasher = IdHasher::new();
        assert_eq!(hasher.of("a"), hasher.clone().of("a"));
        assert_ne!(hasher.of("a"), hasher.of("A"), "ids are case-sensitive");
        assert_ne!(hasher.of("a"), IdHasher::new().of("a"));
        assert_ne!(hasher.of("a").high, hasher.of("a").low);
    }
}
