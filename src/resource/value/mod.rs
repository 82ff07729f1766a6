//! Values: the text of one FHIR primitive, parsed.
//!
//! Every function here is pure and total: any text gives a value or `None`, never an error or a panic. No number passes
//! through a float.

pub mod date;
pub mod decimal;
pub mod quantity;
pub mod reference;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::fhir::parse_instant;

/// Reads an instant as FHIR writes it, or as leniently as is unambiguous. Digits beyond the microsecond and the
/// offset are not kept: they are only in the line.
pub fn instant_micros(text: &str) -> Option<i64> {
    date::instant_micros(text).or_else(|| parse_instant(text).map(|instant| instant.timestamp_micros()))
}

/// The bytes of a base64Binary. White space is allowed anywhere in it, padding may be missing.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    if text.bytes().any(|byte| byte.is_ascii_whitespace()) {
        let dense: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        return LENIENT.decode(dense).ok();
    }
    LENIENT.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_with_white_space_and_without_padding() {
        for (text, bytes) in [("AQID", Some(vec![1, 2, 3])), ("AQ I\nD", Some(vec![1, 2, 3])), ("AQ", Some(vec![1]))] {
            assert_eq!(base64(text), bytes, "{text}");
        }
        assert_eq!(base64("A*"), None);
        assert_eq!(base64("A"), None);
    }
}
