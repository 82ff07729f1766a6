//! A spool: blocks of bytes, in memory up to a budget, then in an unnamed file.
//!
//! What lies in the file is patients' data, so it is sealed: AES-256-GCM under a key that only this spool knows and that is
//! gone with it. A block reads back as it was appended, or not at all. The file has no name, so the operating system
//! removes it with the process, whatever ends that.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::Error;

pub(super) struct Spool {
    folder: PathBuf,
    memory_left_bytes: usize,
    sealed: Option<SealedFile>,
}

/// What finds a block again, in the spool that it was appended to.
pub(super) struct Block(Place);

enum Place {
    Memory(Bytes),
    Sealed { number: u64, offset: u64, bytes: usize },
}

impl Spool {
    /// An empty spool that keeps up to `memory_bytes` in memory; the file is made in `folder` when it is needed.
    pub fn new(memory_bytes: usize, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), memory_left_bytes: memory_bytes, sealed: None }
    }

    /// Keeps a block. Blocks on the disk. On an error the spool is as it was.
    pub fn append(&mut self, mut block: Vec<u8>) -> Result<Block, Error> {
        if let Some(left) = self.memory_left_bytes.checked_sub(block.len()) {
            self.memory_left_bytes = left;
            block.shrink_to_fit();
            return Ok(Block(Place::Memory(block.into())));
        }
        let sealed = match self.sealed.take() {
            Some(sealed) => sealed,
            None => SealedFile::new(&self.folder)?,
        };
        self.sealed.insert(sealed).append(block)
    }

    /// The block as it was appended. Blocks on the disk; several may read at the same time.
    pub fn read(&self, block: &Block) -> Result<Bytes, Error> {
        match (&block.0, &self.sealed) {
            (Place::Memory(block), _) => Ok(block.clone()),
            (Place::Sealed { number, offset, bytes }, Some(sealed)) => sealed.read(*number, *offset, *bytes),
            (Place::Sealed { .. }, None) => Err(Error::spool(CHANGED)),
        }
    }
}

/// Blocks one after the other, each with its tag behind it.
struct SealedFile {
    file: File,
    /// Its memory is overwritten when it is dropped: AWS-LC cleanses whatever it frees, and the key lies there alone.
    key: LessSafeKey,
    end: u64,
    /// Blocks sealed so far, and the nonce of the next one.
    blocks: u64,
}

/// The file has no name and its key was never written: only a failing disk or somebody with our own rights gets here.
const CHANGED: &str = "a block is not what was written there; check the disk under the temporary folder";

impl SealedFile {
    fn new(folder: &Path) -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(key.as_mut_slice()).map_err(Error::spool)?;
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).map_err(Error::spool)?;
        let file = tempfile::tempfile_in(folder).map_err(Error::spool)?;
        Ok(Self { file, key: LessSafeKey::new(key), end: 0, blocks: 0 })
    }

    fn append(&mut self, mut block: Vec<u8>) -> Result<Block, Error> {
        let number = self.blocks;
        // Even where the disk then refuses the block: no nonce serves twice under one key.
        self.blocks += 1;
        block.reserve_exact(MAX_TAG_LEN);
        self.key.seal_in_place_append_tag(nonce(number), Aad::empty(), &mut block).map_err(Error::spool)?;
        self.file.write_all_at(&block, self.end).map_err(Error::spool)?;
        let offset = self.end;
        self.end += block.len() as u64;
        Ok(Block(Place::Sealed { number, offset, bytes: block.len() }))
    }

    fn read(&self, number: u64, offset: u64, bytes: usize) -> Result<Bytes, Error> {
        let mut block = vec![0; bytes];
        self.file.read_exact_at(&mut block, offset).map_err(Error::spool)?;
        let opened = self.key.open_in_place(nonce(number), Aad::empty(), &mut block);
        let opened_bytes = opened.map_err(|_| Error::spool(CHANGED))?.len();
        block.truncate(opened_bytes);
        Ok(block.into())
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - size_of::<u64>()..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(spool: &Spool) -> Vec<u8> {
        let sealed = spool.sealed.as_ref().unwrap();
        let mut text = vec![0; usize::try_from(sealed.end).unwrap()];
        sealed.file.read_exact_at(&mut text, 0).unwrap();
        text
    }

    #[test]
    fn blocks_read_back_in_any_order_within_and_beyond_the_budget() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(100, folder.path());
        let written: Vec<_> = (0u8..20).map(|number| vec![number; usize::from(number) * 3]).collect();
        let blocks: Vec<_> = written.iter().map(|block| spool.append(block.clone()).unwrap()).collect();
        for (block, written) in blocks.iter().zip(&written).rev() {
            assert_eq!(spool.read(block).unwrap(), written);
        }
        assert!(spool.sealed.is_some());
    }

    #[test]
    fn within_the_budget_there_is_no_file() {
        let mut spool = Spool::new(10, Path::new("/no/such/folder"));
        let block = spool.append(vec![7; 10]).unwrap();
        assert_eq!(spool.read(&block).unwrap(), vec![7; 10]);
        assert!(spool.sealed.is_none());
        assert!(spool.append(vec![7]).is_err(), "the next byte needs the file");
    }

    #[test]
    fn the_file_has_neither_a_name_nor_the_text_of_a_block() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(0, folder.path());
        for _ in 0..2 {
            spool.append(b"the patient's name is Smith".to_vec()).unwrap();
        }
        let text = text(&spool);
        assert!(!text.windows(5).any(|window| window == b"Smith"));
        assert_ne!(text[..text.len() / 2], text[text.len() / 2..], "equal blocks look different");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_flipped_byte_anywhere_is_an_error_and_never_other_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(0, folder.path());
        let block = spool.append(b"rows".to_vec()).unwrap();
        for (at, byte) in (0..).zip(text(&spool)) {
            let file = &spool.sealed.as_ref().unwrap().file;
            file.write_all_at(&[byte ^ 1], at).unwrap();
            assert!(spool.read(&block).is_err(), "byte {at}");
            file.write_all_at(&[byte], at).unwrap();
        }
        assert_eq!(spool.read(&block).unwrap(), b"rows".as_slice());
    }

    #[test]
    fn a_block_in_the_place_of_another_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(0, folder.path());
        spool.append(b"left".to_vec()).unwrap();
        let right = spool.append(b"side".to_vec()).unwrap();
        let left = text(&spool)[..4 + MAX_TAG_LEN].to_vec();
        spool.sealed.as_ref().unwrap().file.write_all_at(&left, 4 + MAX_TAG_LEN as u64).unwrap();
        assert!(spool.read(&right).is_err());
    }

    #[test]
    fn a_full_disk_is_said_and_what_was_there_stays() {
        let mut spool = Spool::new(0, &std::env::temp_dir());
        let first = spool.append(b"first".to_vec()).unwrap();
        let file = &mut spool.sealed.as_mut().unwrap().file;
        let there = std::mem::replace(file, File::options().write(true).open("/dev/full").unwrap());
        assert!(matches!(spool.append(b"second".to_vec()), Err(Error::DiskFull { .. })));
        spool.sealed.as_mut().unwrap().file = there;
        let third = spool.append(b"third".to_vec()).unwrap();
        assert_eq!(spool.read(&first).unwrap(), b"first".as_slice());
        assert_eq!(spool.read(&third).unwrap(), b"third".as_slice());
    }
}
