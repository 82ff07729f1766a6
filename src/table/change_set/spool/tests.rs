use super::*;

fn text(spool: &Spool) -> Vec<u8> {
    let sealed = spool.sealed.as_ref().unwrap();
    let mut text = vec![0; usize::try_from(sealed.end).unwrap()];
    sealed.file.read_exact_at(&mut text, 0).unwrap();
    text
}

#[test]
fn blocks_are_read_back_in_any_order_within_and_beyond_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(100, folder.path());
    let written: Vec<_> = (0u8..20).map(|number| vec![number; usize::from(number) * 3]).collect();
    let blocks: Vec<_> = written.iter().map(|block| spool.append(block).unwrap()).collect();
    for (block, written) in blocks.iter().zip(&written).rev() {
        assert_eq!(spool.read(block).unwrap(), written);
    }
    assert!(spool.sealed.is_some());
}

#[test]
fn within_the_budget_there_is_no_file() {
    let mut spool = Spool::new(10, Path::new("/no/such/folder"));
    let block = spool.append(&[7; 10]).unwrap();
    assert_eq!(spool.read(&block).unwrap(), vec![7; 10]);
    assert!(spool.sealed.is_none());
    assert!(spool.append(&[7]).is_err(), "the next byte needs the file");
}

#[test]
fn the_file_has_neither_a_name_nor_the_text_of_a_block() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(0, folder.path());
    for _ in 0..2 {
        spool.append(b"the patient's name is Smith").unwrap();
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
    let block = spool.append(b"rows").unwrap();
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
    spool.append(b"left").unwrap();
    let right = spool.append(b"side").unwrap();
    let left = text(&spool)[..4 + MAX_TAG_LEN].to_vec();
    spool.sealed.as_ref().unwrap().file.write_all_at(&left, 4 + MAX_TAG_LEN as u64).unwrap();
    assert!(spool.read(&right).is_err());
}

#[test]
fn a_full_disk_is_an_error_and_earlier_blocks_stay() {
    let mut spool = Spool::new(0, &std::env::temp_dir());
    let first = spool.append(b"first").unwrap();
    let file = &mut spool.sealed.as_mut().unwrap().file;
    let there = std::mem::replace(file, File::options().write(true).open("/dev/full").unwrap());
    assert!(matches!(spool.append(b"second"), Err(Error::DiskFull { .. })));
    spool.sealed.as_mut().unwrap().file = there;
    let third = spool.append(b"third").unwrap();
    assert_eq!(spool.read(&first).unwrap(), b"first".as_slice());
    assert_eq!(spool.read(&third).unwrap(), b"third".as_slice());
}
