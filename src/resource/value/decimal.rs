//! Decimals: the text of a JSON number as an integer with a scale. Never a float.

/// A decimal at the scale of its column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scaled {
    /// The decimal × 10^scale, rounded half away from zero, as Pathling does.
    pub unscaled: i128,
    /// Whether digits were lost.
    pub rounded: bool,
}

/// The text of a JSON number, taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Decimal<'text> {
    negative: bool,
    integer: &'text [u8],
    fraction: &'text [u8],
    exponent: i64,
}

impl<'text> Decimal<'text> {
    /// `None` if the text is not a JSON number.
    pub fn parse(text: &'text str) -> Option<Self> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            // A number with an exponent beyond the limit is never in range, and zero is zero with any exponent.
            Some((mantissa, exponent)) => (mantissa, saturating(exponent)?),
            None => (rest, 0),
        };
        let (integer, fraction) = match mantissa.split_once('.') {
            Some((integer, fraction)) => (integer.as_bytes(), Some(fraction.as_bytes())),
            None => (mantissa.as_bytes(), None),
        };
        let digits = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
        let legal = digits(integer) && fraction.is_none_or(digits) && (integer.len() == 1 || integer[0] != b'0');
        legal.then_some(Self { negative, integer, fraction: fraction.unwrap_or_default(), exponent })
    }

    /// How many digits are written after the point; negative if the exponent makes the last written digit worth more
    /// than one (`1.5e3`: -2).
    pub fn lexical_scale(self) -> i32 {
        let scale = i64::try_from(self.fraction.len()).unwrap_or(i64::MAX).saturating_sub(self.exponent);
        i32::try_from(scale).unwrap_or(if scale < 0 { i32::MIN } else { i32::MAX })
    }

    /// The decimal at `scale`; `None` if it has more than `precision` digits then.
    pub fn at_scale(self, scale: i8, precision: u8) -> Option<Scaled> {
        let count = self.integer.len() + self.fraction.len();
        let shift = i64::from(scale) - i64::from(self.lexical_scale());
        let kept = match usize::try_from(shift.saturating_neg()) {
            Ok(dropped) => count.checked_sub(dropped),
            Err(_) => Some(count),
        };
        // All digits are dropped, and a zero before them: the number is less than half of the last digit.
        let Some(kept) = kept else { return Some(Scaled { unscaled: 0, rounded: !self.is_zero() }) };
        let limit = power_of_ten(precision.into())?;
        let mut unscaled = self.leading(kept)?;
        let rounded = self.digits().skip(kept).any(|digit| digit != 0);
        unscaled += i128::from(self.rounds_up(kept));
        if unscaled != 0 && shift > 0 {
            unscaled = unscaled.checked_mul(power_of_ten(usize::try_from(shift).ok()?)?)?;
        }
        let unscaled = if self.negative { -unscaled } else { unscaled };
        (unscaled.abs() < limit).then_some(Scaled { unscaled, rounded })
    }

    /// The exact value as (integer, scale): integer × 10^-scale. `None` beyond 38 digits, or if the scale does not
    /// fit into 32 bits.
    pub fn exact(self) -> Option<(i128, i32)> {
        let digits = self.leading(self.integer.len() + self.fraction.len())?;
        let scale = Some(self.lexical_scale()).filter(|scale| !matches!(*scale, i32::MIN | i32::MAX))?;
        Some((if self.negative { -digits } else { digits }, scale))
    }

    fn digits(self) -> impl Iterator<Item = u8> {
        self.integer.iter().chain(self.fraction).map(|byte| byte - b'0')
    }

    fn is_zero(self) -> bool {
        self.digits().all(|digit| digit == 0)
    }

    /// The first `count` digits as a number; `None` beyond 38 digits.
    fn leading(self, count: usize) -> Option<i128> {
        const LIMIT: i128 = 10i128.pow(37);
        /// Of a machine word.
        const DIGITS: usize = 18;
        if count <= DIGITS {
            let number = self.digits().take(count).fold(0, |number, digit| number * 10 + u64::from(digit));
            return Some(number.into());
        }
        self.digits()
            .take(count)
            .try_fold(0i128, |number, digit| (number < LIMIT).then(|| number * 10 + i128::from(digit)))
    }

    /// Half away from zero, for the digits after the first `kept`: the first of them decides.
    fn rounds_up(self, kept: usize) -> bool {
        self.digits().nth(kept).is_some_and(|digit| digit >= 5)
    }
}

/// `None` beyond 38 digits.
fn power_of_ten(exponent: usize) -> Option<i128> {
    const POWERS: [i128; 39] = {
        let mut powers = [1; 39];
        let mut exponent = 1;
        while exponent < 39 {
            powers[exponent] = powers[exponent - 1] * 10;
            exponent += 1;
        }
        powers
    };
    POWERS.get(exponent).copied()
}

fn saturating(exponent: &str) -> Option<i64> {
    const LIMIT: i64 = 1 << 40;
    let (negative, digits) = match exponent.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let size = digits.iter().fold(0i64, |size, digit| (size * 10 + i64::from(digit - b'0')).min(LIMIT));
    Some(if negative { -size } else { size })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at_six(text: &str) -> Option<(i128, bool)> {
        Decimal::parse(text)?.at_scale(6, 32).map(|scaled| (scaled.unscaled, scaled.rounded))
    }

    #[test]
    fn a_decimal_is_rounded_half_away_from_zero_and_says_so() {
        for (text, unscaled, rounded) in [
            ("0", 0, false),
            ("-0.0", 0, false),
            ("181.2", 181_200_000, false),
            ("-1.5", -1_500_000, false),
            ("1.50000000", 1_500_000, false),
            ("0.0000005", 1, true),
            ("0.0000015", 2, true),
            ("0.0000025", 3, true),
            ("0.00000250000001", 3, true),
            ("-0.0000015", -2, true),
            ("-0.0000025", -3, true),
            ("0.0000004100", 0, true),
            ("0.00000041", 0, true),
            ("139.9996742575894", 139_999_674, true),
            ("1e2", 100_000_000, false),
            ("1.5E+3", 1_500_000_000, false),
            ("15e-1", 1_500_000, false),
            ("5e-7", 1, true),
            ("51e-8", 1, true),
            ("1e-999999999999999999999", 0, true),
            ("0e999999999999999999999", 0, false),
            ("99999999999999999999999999.999999", 10i128.pow(32) - 1, false),
        ] {
            assert_eq!(at_six(text), Some((unscaled, rounded)), "{text}");
        }
    }

    #[test]
    fn a_decimal_out_of_range_has_no_value() {
        for text in
            ["100000000000000000000000000", "1e26", "99999999999999999999999999.9999999", "1e999999999999999999999"]
        {
            assert_eq!(at_six(text), None, "{text}");
        }
        assert!(Decimal::parse("1e25").unwrap().at_scale(12, 38).is_some());
        assert!(Decimal::parse("1e26").unwrap().at_scale(12, 38).is_none());
    }

    /// (rule 87)
    #[test]
    fn the_lexical_scale_is_what_was_written() {
        for (text, scale) in [("1", 0), ("1.50", 2), ("1.5e3", -2), ("15e-3", 3), ("0.0000004100", 10)] {
            assert_eq!(Decimal::parse(text).unwrap().lexical_scale(), scale, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_json_number_is_not_a_decimal() {
        for text in ["", "-", ".5", "1.", "1e", "1e+", "+1", "01", "1.5.2", "0x1", "NaN", "1 ", "--1"] {
            assert!(Decimal::parse(text).is_none(), "{text}");
        }
    }

    proptest! {
        /// (rule 87)
        #[test]
        fn up_to_six_places_come_back_exactly(unscaled in -10i128.pow(31)..10i128.pow(31)) {
            let sign = if unscaled < 0 { "-" } else { "" };
            let text = format!("{sign}{}.{:06}", unscaled.abs() / 1_000_000, unscaled.abs() % 1_000_000);
            prop_assert_eq!(at_six(&text), Some((unscaled, false)));
        }

        #[test]
        fn no_text_panics(text in "-?[0-9]{0,50}[.]?[0-9]{0,50}([eE][+-]?[0-9]{0,25})?|\\PC{0,20}") {
            if let Some(decimal) = Decimal::parse(&text) {
                let _ = (decimal.at_scale(6, 32), decimal.at_scale(12, 38), decimal.exact(), decimal.lexical_scale());
            }
        }
    }
}
