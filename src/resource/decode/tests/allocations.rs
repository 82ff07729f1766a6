//! Allocations: a row of a line with a mapping costs one, that of its id; the rest are the arrays of its batch.

use super::*;

#[test]
fn a_row_costs_about_one_allocation() {
    const ROWS: u64 = 4_000;
    for (resource_type, text, _) in RESOURCES.into_iter().filter(|(.., issues)| *issues == 0) {
        let with_id = |number| text.replacen("\"id\":\"", &format!("\"id\":\"{number}-"), 1);
        let texts: Vec<_> = (0..ROWS).map(with_id).collect();
        let (decoder, lines) = (decoder(resource_type, Layout::Pathling), lines(&texts));
        decoder.decode(&lines).unwrap();
        let allocations = allocation_counter::measure(|| {
            let decoded = decoder.decode(&lines).unwrap();
            assert_eq!(decoded.keys.len() as u64, ROWS);
        });
        // What is in base64 is decoded into a buffer of its own.
        let most = if text.contains(r#""data":"#) { 3 * ROWS } else { 2 * ROWS };
        assert!(allocations.count_total < most, "{resource_type}: {allocations:?}");
    }
}
