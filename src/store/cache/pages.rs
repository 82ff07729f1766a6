//! Pages: an unnamed file of sealed pages of equal size, of which some are free.
//!
//! What is kept here was read from tables of patients, so each page is encrypted by AES-256-GCM with a key that is
//! only in the memory of this file. The file has no name, so the operating system removes it when the process ends,
//! however it ends. A page is read back exactly as it was written, or not at all.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use zeroize::Zeroizing;

/// How much fits into a page. A footer is a page or some of them, and a chunk of ids a hundred.
pub const PAGE_BYTES: usize = 64 * 1024;
const SEALED_BYTES: usize = PAGE_BYTES + MAX_TAG_LEN;

/// Where a page begins, by its number.
fn offset(page: u32) -> u64 {
    u64::from(page) * SEALED_BYTES as u64
}

#[derive(Debug)]
pub struct Pages {
    file: File,
    key: LessSafeKey,
}

impl Pages {
    pub fn new(folder: &Path) -> io::Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(key.as_mut_slice()).map_err(io::Error::other)?;
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).map_err(io::Error::other)?;
        Ok(Self { file: tempfile::tempfile_in(folder)?, key: LessSafeKey::new(key) })
    }

    /// Writes the bytes into as many pages as they need. The nonces `nonce..` must not have been used before, one for
    /// each page. Blocks on the disk.
    pub fn write(&self, pages: &[u32], nonce: u64, bytes: &[u8]) -> io::Result<()> {
        let mut sealed = Vec::with_capacity(SEALED_BYTES);
        for ((page, bytes), nonce) in pages.iter().zip(bytes.chunks(PAGE_BYTES)).zip(nonce..) {
            sealed.clear();
            sealed.extend_from_slice(bytes);
            let done = self.key.seal_in_place_append_tag(nonce_of(nonce), Aad::empty(), &mut sealed);
            done.map_err(io::Error::other)?;
            self.file.write_all_at(&sealed, offset(*page))?;
        }
        Ok(())
    }

    /// The bytes that were written into these pages with these nonces. An error where they hold something else now.
    /// Blocks on the disk.
    pub fn read(&self, pages: &[u32], nonce: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(bytes);
        let mut page_bytes = vec![0; SEALED_BYTES];
        for (page, nonce) in pages.iter().zip(nonce..) {
            let sealed = &mut page_bytes[..PAGE_BYTES.min(bytes - all.len()) + MAX_TAG_LEN];
            self.file.read_exact_at(sealed, offset(*page))?;
            let opened = self.key.open_in_place(nonce_of(nonce), Aad::empty(), sealed).map_err(io::Error::other)?;
            all.extend_from_slice(opened);
        }
        Ok(all)
    }

    /// Gives the space of all pages back to the disk.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

fn nonce_of(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - size_of::<u64>()..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}
