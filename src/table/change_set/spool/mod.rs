//! A spool: blocks of bytes, in memory up to a budget, then in an unnamed file.
//!
//! The file has patients' data in it, so each block is encrypted by AES-256-GCM, with a key that is only in the memory
//! of this spool. A block is read back exactly as it was appended, or not at all. The file has no name, so the
//! operating system removes it when the process ends, however it ends.

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

use crate::{
    table::Error,
    telemetry::{advance, metrics},
};

pub struct Spool {
    folder: PathBuf,
    memory_left_bytes: usize,
    sealed: Option<SealedFile>,
}

/// Finds a block in the spool that it was appended to.
pub struct Block(BlockLocation);

enum BlockLocation {
    Memory(Bytes),
    Sealed { number: u64, offset: u64, bytes: usize },
}

impl Spool {
    /// An empty spool that keeps up to `memory_bytes` in memory; the file is created in `folder` when it is needed.
    pub fn new(memory_bytes: usize, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), memory_left_bytes: memory_bytes, sealed: None }
    }

    /// Another one in the same folder, which is empty and keeps nothing in memory.
    pub fn beside(&self) -> Self {
        Self::new(0, &self.folder)
    }

    /// Keeps a block. Blocks on the disk. After an error the spool is as it was.
    pub fn append(&mut self, block: &[u8]) -> Result<Block, Error> {
        if let Some(left) = self.memory_left_bytes.checked_sub(block.len()) {
            self.memory_left_bytes = left;
            return Ok(Block(BlockLocation::Memory(Bytes::copy_from_slice(block))));
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
            (BlockLocation::Memory(block), _) => Ok(block.clone()),
            (BlockLocation::Sealed { number, offset, bytes }, Some(sealed)) => sealed.read(*number, *offset, *bytes),
            (BlockLocation::Sealed { .. }, None) => Err(Error::spool(CHANGED)),
        }
    }
}

/// Encrypted blocks one after the other, each followed by its tag.
struct SealedFile {
    file: File,
    /// AWS-LC overwrites all memory that it frees, and the key is in no other memory.
    key: LessSafeKey,
    end: u64,
    /// How many blocks were encrypted. This is also the nonce of the next one.
    blocks: u64,
}

/// The file has no name and its key is written nowhere, so only a failing disk or a process of the same user can cause
/// this.
const CHANGED: &str = "a block is not as it was written; check the disk under the temporary folder";

impl SealedFile {
    fn new(folder: &Path) -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(key.as_mut_slice()).map_err(Error::spool)?;
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).map_err(Error::spool)?;
        let file = tempfile::tempfile_in(folder).map_err(Error::spool)?;
        Ok(Self { file, key: LessSafeKey::new(key), end: 0, blocks: 0 })
    }

    fn append(&mut self, block: &[u8]) -> Result<Block, Error> {
        let number = self.blocks;
        // Counted before the write, which may fail: a nonce must never be used twice with one key.
        self.blocks += 1;
        let mut sealed = Vec::with_capacity(block.len() + MAX_TAG_LEN);
        sealed.extend_from_slice(block);
        self.key.seal_in_place_append_tag(nonce(number), Aad::empty(), &mut sealed).map_err(Error::spool)?;
        self.file.write_all_at(&sealed, self.end).map_err(Error::spool)?;
        let offset = self.end;
        self.end += sealed.len() as u64;
        metrics::spool_grew(sealed.len() as u64);
        Ok(Block(BlockLocation::Sealed { number, offset, bytes: sealed.len() }))
    }

    fn read(&self, number: u64, offset: u64, bytes: usize) -> Result<Bytes, Error> {
        advance::note();
        let mut block = vec![0; bytes];
        self.file.read_exact_at(&mut block, offset).map_err(Error::spool)?;
        let opened = self.key.open_in_place(nonce(number), Aad::empty(), &mut block);
        let opened_bytes = opened.map_err(|_| Error::spool(CHANGED))?.len();
        block.truncate(opened_bytes);
        Ok(block.into())
    }
}

impl Drop for SealedFile {
    fn drop(&mut self) {
        metrics::spool_removed(self.end);
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - size_of::<u64>()..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests;
