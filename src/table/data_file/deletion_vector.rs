//! A deletion vector: which rows of a data file are deleted.
//!
//! Data files never change. To delete a row, its index is put into the vector that the log has for the file. All
//! vectors of one commit share one file. The format is the protocol's: a version byte, then for each vector its length
//! (big-endian), a magic number and a 64-bit Roaring bitmap (little-endian), and a CRC-32 (big-endian) of both.

use bytes::Bytes;
use deltalake::{
    DeltaTableError, ObjectStore, Path,
    kernel::{DeletionVectorDescriptor, StorageType},
};
use object_store::ObjectStoreExt as _;
use roaring::RoaringTreemap;
use uuid::Uuid;

/// Rows of a data file or of a batch, by their index from 0: the bitmap that a deletion vector stores.
pub type RowSet = RoaringTreemap;

const MAGIC: u32 = 1_681_511_377;
const VERSION: u8 = 1;
/// How many characters at the end of a path are the encoded UUID. A random folder may precede it.
const ENCODED_UUID: usize = 20;

fn damaged(what: &str) -> DeltaTableError {
    DeltaTableError::generic(format!("a deletion vector {what}"))
}

/// Reads a vector, which is in the log itself or in a file.
pub async fn read(store: &dyn ObjectStore, descriptor: &DeletionVectorDescriptor) -> Result<RowSet, DeltaTableError> {
    let file = match file_of(descriptor) {
        Some(path) => Some(store.get(&path).await?.bytes().await?),
        None => None,
    };
    of_bytes(descriptor, |_| file.as_ref())
}

/// The vector that a descriptor describes, where `file` has the content of each file of vectors.
pub fn of_bytes<'files>(
    descriptor: &DeletionVectorDescriptor,
    file: impl FnOnce(&Path) -> Option<&'files Bytes>,
) -> Result<RowSet, DeltaTableError> {
    let rows = match descriptor.storage_type {
        StorageType::Inline => {
            let data = z85::decode(&descriptor.path_or_inline_dv).map_err(|_| damaged("is not base-85 text"))?;
            parse(&data)
        }
        StorageType::UuidRelativePath => {
            let path = relative_path(&descriptor.path_or_inline_dv).ok_or_else(|| damaged("has no readable path"))?;
            let start = usize::try_from(descriptor.offset.unwrap_or(1)).map_err(|_| damaged("has no valid offset"))?;
            let length = usize::try_from(descriptor.size_in_bytes).map_err(|_| damaged("has no valid length"))?;
            let stored = file(&path).and_then(|file| file.get(start..)?.get(..4 + length + 4));
            let data = stored.and_then(checked);
            parse(data.ok_or_else(|| damaged("is damaged: its length or its checksum is wrong"))?)
        }
        StorageType::AbsolutePath => return Err(damaged("is outside of the table, which is then a shallow clone")),
    };
    let rows = rows.ok_or_else(|| damaged("is damaged"))?;
    if i64::try_from(rows.len()) == Ok(descriptor.cardinality) {
        Ok(rows)
    } else {
        Err(damaged("has another number of rows than the log states"))
    }
}

/// Writes the vectors into one new file; their descriptors in the same order.
pub async fn write(
    store: &dyn ObjectStore,
    vectors: &[RowSet],
) -> Result<Vec<DeletionVectorDescriptor>, DeltaTableError> {
    let uuid = Uuid::new_v4();
    let mut file = vec![VERSION];
    let mut descriptors = Vec::with_capacity(vectors.len());
    let too_long = |_| DeltaTableError::generic("deletion vectors of more than 2 GiB");
    for rows in vectors {
        let mut data = MAGIC.to_le_bytes().to_vec();
        rows.serialize_into(&mut data)?;
        descriptors.push(DeletionVectorDescriptor {
            storage_type: StorageType::UuidRelativePath,
            path_or_inline_dv: z85::encode(uuid.as_bytes()),
            offset: Some(i32::try_from(file.len()).map_err(too_long)?),
            size_in_bytes: i32::try_from(data.len()).map_err(too_long)?,
            cardinality: i64::try_from(rows.len()).unwrap_or(i64::MAX),
        });
        file.extend(u32::try_from(data.len()).map_err(too_long)?.to_be_bytes());
        file.extend(&data);
        file.extend(crc32fast::hash(&data).to_be_bytes());
    }
    store.put(&path_of(uuid, ""), Bytes::from(file).into()).await?;
    Ok(descriptors)
}

/// The file of a vector; `None` where the table has no file for it.
pub fn file_of(descriptor: &DeletionVectorDescriptor) -> Option<Path> {
    matches!(descriptor.storage_type, StorageType::UuidRelativePath)
        .then(|| relative_path(&descriptor.path_or_inline_dv))
        .flatten()
}

fn relative_path(encoded: &str) -> Option<Path> {
    let (folder, uuid) = encoded.split_at_checked(encoded.len().checked_sub(ENCODED_UUID)?)?;
    let uuid = Uuid::from_slice(&z85::decode(uuid).ok()?).ok()?;
    Some(path_of(uuid, folder))
}

fn path_of(uuid: Uuid, folder: &str) -> Path {
    let name = format!("deletion_vector_{uuid}.bin");
    if folder.is_empty() { Path::from(name) } else { Path::from(format!("{folder}/{name}")) }
}

/// The data between length and checksum.
fn checked(stored: &[u8]) -> Option<&[u8]> {
    let (length, rest) = stored.split_first_chunk::<4>()?;
    let (data, checksum) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    (checksum == crc32fast::hash(data).to_be_bytes()).then_some(data)
}

fn parse(data: &[u8]) -> Option<RowSet> {
    let (magic, bitmap) = data.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*magic) == MAGIC).then(|| RoaringTreemap::deserialize_from(bitmap).ok())?
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn vectors_of_one_file_are_read_back_as_written() {
        let store = InMemory::new();
        let vectors: [RowSet; 2] = [[0, 7, 1 << 33].into_iter().collect(), (0..100_000).collect()];
        let descriptors = write(&store, &vectors).await.unwrap();
        assert_eq!(file_of(&descriptors[0]), file_of(&descriptors[1]));
        for (descriptor, rows) in descriptors.iter().zip(&vectors) {
            assert_eq!(&read(&store, descriptor).await.unwrap(), rows);
        }
    }

    #[tokio::test]
    async fn a_damaged_vector_is_an_error_and_never_undeletes_a_row() {
        let store = InMemory::new();
        let descriptors = write(&store, &[RowSet::from_iter([3, 5])]).await.unwrap();
        let path = file_of(&descriptors[0]).unwrap();
        let mut bytes = store.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let last = bytes.len() - 6;
        bytes[last] ^= 1;
        store.put(&path, Bytes::from(bytes).into()).await.unwrap();
        assert!(read(&store, &descriptors[0]).await.is_err());
    }

    #[tokio::test]
    async fn a_vector_inside_the_log_is_read_as_in_the_example_of_the_protocol() {
        let descriptor = DeletionVectorDescriptor {
            storage_type: StorageType::Inline,
            path_or_inline_dv: "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L".to_owned(),
            offset: None,
            size_in_bytes: 44,
            cardinality: 6,
        };
        let rows = read(&InMemory::new(), &descriptor).await.unwrap();
        assert_eq!(rows.into_iter().collect::<Vec<_>>(), [3, 4, 7, 11, 18, 29]);
    }
}
