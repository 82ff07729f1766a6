//! Canonical quantities: a value with a UCUM code in the base units of UCUM, as Pathling writes it (schema 3.1).
//!
//! Factors are exact fractions, so a canonical value has up to 38 right digits. Two things differ from Pathling:
//! trailing zeros are never written (it writes 311.14 K as 31114 × 10^18 at scale 20; the number is the same), and
//! a unit on a scale that is not linear (`B`, `[pH]`) has no canonical form.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use num_bigint::BigUint;
use num_rational::Ratio;
use octofhir_ucum::{Case, Dimension, Number, SpecialKind, UnitExpr, UnitRecord, lookup_unit, parse_expression};

use super::decimal::Decimal;

/// A number as `mantissa` × 10^-`scale`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CanonicalValue {
    pub mantissa: i128,
    pub scale: i32,
}

/// A UCUM code in base units: how to turn a value of it into one of those.
#[derive(Clone, Debug)]
pub struct Unit {
    /// `g.m-3`, `m+3`; `1` where it has no dimension.
    pub canonical_code: String,
    factor: Factor,
    /// Added before the factor is applied: × 10^-2. Only temperatures have one.
    offset_hundredths: i64,
}

/// The units met so far, by their codes.
#[derive(Default)]
pub struct Units {
    by_code: ByCode,
}

type ByCode = BTreeMap<Box<str>, Option<Arc<Unit>>>;

/// The units that any batch has met. What a code means never changes, and resolving it takes as long as decoding some
/// lines.
static KNOWN: LazyLock<Mutex<ByCode>> = LazyLock::new(Mutex::default);

/// `Quantity.system` of a UCUM code.
pub const UCUM: &str = "http://unitsofmeasure.org";

impl Units {
    /// `None` where the code is not one of UCUM.
    pub fn unit(&mut self, code: &str) -> Option<&Unit> {
        const MAX_CODE_BYTES: usize = 256;
        if code.len() > MAX_CODE_BYTES {
            return None;
        }
        if !self.by_code.contains_key(code) {
            remember(&mut self.by_code, code, known(code));
        }
        self.by_code.get(code).and_then(Option::as_deref)
    }
}

fn known(code: &str) -> Option<Arc<Unit>> {
    let lock = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = lock().get(code).cloned();
    found.unwrap_or_else(|| {
        let unit = Unit::of(code).map(Arc::new);
        remember(&mut lock(), code, unit.clone());
        unit
    })
}

fn remember(by_code: &mut ByCode, code: &str, unit: Option<Arc<Unit>>) {
    const MAX_CODES: usize = 10_000;
    if by_code.len() >= MAX_CODES {
        by_code.clear();
    }
    by_code.insert(code.into(), unit);
}

impl Unit {
    /// `None` where the code is not one of UCUM, or has no linear relation to base units.
    pub fn of(code: &str) -> Option<Self> {
        let expression = parse_expression(code).ok()?;
        let term = match temperature(&expression) {
            Some((kind, unit, prefix)) => {
                let (offset_hundredths, factor) = match kind {
                    SpecialKind::Celsius => (27_315, Factor::one()),
                    SpecialKind::Fahrenheit => (45_967, Factor::new(5u32, 9u32, 0)?),
                    SpecialKind::Reaumur => (21_852, Factor::new(5u32, 4u32, 0)?),
                    _ => return None,
                };
                // A prefix scales the value before the offset: no such unit is in use.
                if prefix {
                    return None;
                }
                return Some(Self { canonical_code: canonical_code(unit.dim), factor, offset_hundredths });
            }
            None => Term::of(&expression)?,
        };
        Some(Self {
            canonical_code: canonical_code(Dimension(term.exponents)),
            factor: term.factor,
            offset_hundredths: 0,
        })
    }

    /// The value in base units: up to 38 digits, the last one rounded half up; `None` beyond 10^38.
    pub fn canonical(&self, value: Decimal<'_>) -> Option<CanonicalValue> {
        let (digits, scale) = value.exact()?;
        let (digits, scale) = match self.offset_hundredths {
            0 => (digits, scale),
            offset => sum((digits, scale), (i128::from(offset), 2))?,
        };
        let canonical = self.factor.apply(digits.unsigned_abs(), scale)?;
        Some(CanonicalValue {
            mantissa: if digits < 0 { -canonical.mantissa } else { canonical.mantissa },
            ..canonical
        })
    }
}

/// A lone temperature unit, and whether it has a prefix.
fn temperature(expression: &UnitExpr) -> Option<(SpecialKind, &'static UnitRecord, bool)> {
    match expression {
        UnitExpr::Annotated(inner, _) => temperature(inner),
        UnitExpr::Symbol(code) => {
            let (prefix, unit) = lookup_unit(code, Case::Sensitive)?;
            unit.special.is_special().then_some((unit.special, unit, prefix.is_some()))
        }
        _ => None,
    }
}

/// A factor and the exponents of the base units.
struct Term {
    factor: Factor,
    exponents: [i8; 7],
}

impl Term {
    /// The depth of an expression has a limit where it is parsed.
    fn of(expression: &UnitExpr) -> Option<Self> {
        match expression {
            UnitExpr::Symbol(code) => {
                let (prefix, unit) = lookup_unit(code, Case::Sensitive)?;
                if unit.special.is_special() {
                    return None;
                }
                let factor = Factor::exact(unit.factor)?;
                let factor = match prefix {
                    Some(prefix) => Factor::exact(prefix.factor)?.multiply(&factor)?,
                    None => factor,
                };
                Some(Self { factor, exponents: unit.dim.0 })
            }
            UnitExpr::Numeric(number) => Some(Self { factor: Factor::exact(*number)?, ..Self::one() }),
            UnitExpr::Annotation(_) => Some(Self::one()),
            UnitExpr::Annotated(inner, _) => Self::of(inner),
            UnitExpr::Power(base, exponent) => Self::one().times(&Self::of(base)?, *exponent),
            UnitExpr::Product(terms) => terms.iter().try_fold(Self::one(), |all, term| all.times(&Self::of(term)?, 1)),
            UnitExpr::Quotient(over, under) => Self::of(over)?.times(&Self::of(under)?, -1),
            UnitExpr::Reciprocal(under) => Self::one().times(&Self::of(under)?, -1),
        }
    }

    fn one() -> Self {
        Self { factor: Factor::one(), exponents: [0; 7] }
    }

    fn times(mut self, other: &Self, exponent: i32) -> Option<Self> {
        self.factor = self.factor.multiply(&other.factor.power(exponent)?)?;
        for (own, others) in self.exponents.iter_mut().zip(other.exponents) {
            let added = i32::from(others).checked_mul(exponent)?;
            *own = i8::try_from(i32::from(*own).checked_add(added)?).ok()?;
        }
        Some(self)
    }
}

/// Base units in the order of their bytes, joined by dots.
fn canonical_code(dimension: Dimension) -> String {
    let mut parts: Vec<_> =
        Dimension::BASE_UNITS.iter().zip(dimension.0).filter(|(_, exponent)| *exponent != 0).collect();
    parts.sort_unstable();
    let part =
        |(unit, exponent): (&&str, i8)| if exponent == 1 { (*unit).to_owned() } else { format!("{unit}{exponent:+}") };
    let parts: Vec<_> = parts.into_iter().map(part).collect();
    if parts.is_empty() { "1".to_owned() } else { parts.join(".") }
}

/// `fraction × 10^exponent`; positive, and neither part of the fraction ends in a zero.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Factor {
    fraction: Ratio<BigUint>,
    exponent: i32,
    /// The parts of the fraction, where they are as small as in nearly every unit.
    small: Option<(u128, u64)>,
}

impl Factor {
    /// The parts of a fraction have a limit, so that no code keeps a thread busy: `m2147483647` is a legal one.
    const MAX_BITS: u64 = 255;

    fn one() -> Self {
        Self { fraction: Ratio::from_integer(BigUint::from(1u32)), exponent: 0, small: Some((1, 1)) }
    }

    /// From positive numbers; `None` where the exponent is out of range.
    fn new(numerator: impl Into<BigUint>, denominator: impl Into<BigUint>, exponent: i32) -> Option<Self> {
        let (numerator, over) = without_tens(numerator.into());
        let (denominator, under) = without_tens(denominator.into());
        let fraction = Ratio::new(numerator, denominator);
        let small = u128::try_from(fraction.numer()).ok().zip(u64::try_from(fraction.denom()).ok());
        Some(Self { fraction, exponent: exponent.checked_add(over)?.checked_sub(under)?, small })
    }

    /// What a factor of 28 digits stands for: itself, or the fraction that was rounded to it. The library gives `U`, 1
    /// µmol per minute, as 1.00369012666…67 × 10^16 per second. Three times that is 3.01107038 × 10^16 but for the
    /// rounding: a short number. So a long factor is taken for a short number divided by a small one, if there is such
    /// a small one.
    fn exact(number: Number) -> Option<Self> {
        const LONG: i128 = 10i128.pow(20);
        const SHORT: i128 = 10i128.pow(10);
        let (digits, exponent) = number.to_integer_and_exponent();
        if digits <= 0 {
            return None;
        }
        let mut denominators = 2..=if digits < LONG { 1 } else { 1000i128 };
        let denominator = denominators.find(|denominator| {
            let off = (digits * denominator).rem_euclid(SHORT);
            off.min(SHORT - off) <= 4 * denominator
        });
        match denominator {
            Some(denominator) => {
                let numerator = (digits * denominator + SHORT / 2) / SHORT;
                Self::new(numerator.unsigned_abs(), denominator.unsigned_abs(), exponent.checked_add(10)?)
            }
            None => Self::new(digits.unsigned_abs(), 1u32, exponent),
        }
    }

    fn multiply(&self, other: &Self) -> Option<Self> {
        Self::limited(&self.fraction * &other.fraction, self.exponent.checked_add(other.exponent)?)
    }

    fn power(&self, exponent: i32) -> Option<Self> {
        // A number of n bits is at least 2^(n-1): what is certain to exceed the limit is not computed.
        let bits = self.fraction.numer().bits().max(self.fraction.denom().bits()) - 1;
        if bits.saturating_mul(exponent.unsigned_abs().into()) > Self::MAX_BITS {
            return None;
        }
        Self::limited(self.fraction.pow(exponent), self.exponent.checked_mul(exponent)?)
    }

    fn limited(fraction: Ratio<BigUint>, exponent: i32) -> Option<Self> {
        let (numerator, denominator) = fraction.into_raw();
        let is_within = numerator.bits().max(denominator.bits()) <= Self::MAX_BITS;
        is_within.then(|| Self::new(numerator, denominator, exponent)).flatten()
    }

    /// `digits × 10^-scale` times this: up to 38 digits, the last one rounded half up.
    fn apply(&self, digits: u128, scale: i32) -> Option<CanonicalValue> {
        let exponent = self.exponent.checked_sub(scale)?;
        let small = self.small.and_then(|(numerator, denominator)| {
            let product = digits.checked_mul(numerator).filter(|product| *product < LIMIT)?;
            Some((product, denominator))
        });
        let (quotient, exponent) = match small {
            Some((product, denominator)) => divide_small(product, denominator.into(), exponent)?,
            None => {
                let product = self.fraction.numer() * digits;
                let is_within = product.bits() <= Self::MAX_BITS;
                is_within.then(|| divide_large(&product, self.fraction.denom(), exponent)).flatten()?
            }
        };
        canonical_value(quotient, exponent)
    }
}

fn without_tens(mut number: BigUint) -> (BigUint, i32) {
    let mut tens = 0;
    while number != BigUint::ZERO && &number % 10u32 == BigUint::ZERO {
        number /= 10u32;
        tens += 1;
    }
    (number, tens)
}

/// Two numbers of the form digits × 10^-scale, added.
fn sum(a: (i128, i32), b: (i128, i32)) -> Option<(i128, i32)> {
    let (small, large) = if a.1.cmp(&b.1) == Ordering::Less { (a, b) } else { (b, a) };
    let places = u32::try_from(i64::from(large.1) - i64::from(small.1)).ok()?;
    let aligned = small.0.checked_mul(10i128.checked_pow(places)?)?;
    Some((aligned.checked_add(large.0)?, large.1))
}

/// `quotient × 10^exponent` without zeros at the end; with a scale of 0 where it is an integer.
fn canonical_value(quotient: u128, exponent: i32) -> Option<CanonicalValue> {
    let (quotient, tens) = without_small_tens(quotient);
    let mantissa = i128::try_from(quotient).ok()?;
    let exponent = if mantissa == 0 { 0 } else { exponent.checked_add(tens)? };
    let Ok(zeros) = u32::try_from(exponent) else {
        return Some(CanonicalValue { mantissa, scale: exponent.checked_neg()? });
    };
    let mantissa = mantissa.checked_mul(10i128.checked_pow(zeros)?)?;
    (mantissa.unsigned_abs() < LIMIT).then_some(CanonicalValue { mantissa, scale: 0 })
}

/// Canonical values have 38 digits at most.
const LIMIT: u128 = 10u128.pow(38);

/// Eighteen digits at a time, on machine words: enough for nearly every measurement.
fn divide_small(product: u128, denominator: u128, mut exponent: i32) -> Option<(u128, i32)> {
    if denominator == 1 {
        return Some((product, exponent));
    }
    let mut quotient = product / denominator;
    let mut remainder = product % denominator;
    while remainder != 0 && quotient < LIMIT / 10 {
        let digits = quotient.checked_ilog10().map_or(0, |digits| digits + 1);
        let more = (38 - digits).min(18);
        let power = 10u128.pow(more);
        quotient = quotient * power + remainder * power / denominator;
        remainder = remainder * power % denominator;
        exponent = exponent.checked_sub(i32::try_from(more).ok()?)?;
    }
    Some((quotient + u128::from(remainder * 2 >= denominator), exponent))
}

/// One digit at a time, for units whose factors are long.
fn divide_large(product: &BigUint, denominator: &BigUint, mut exponent: i32) -> Option<(u128, i32)> {
    let limit = BigUint::from(LIMIT);
    let (mut quotient, mut remainder) = (product / denominator, product % denominator);
    while remainder != BigUint::ZERO && quotient < limit {
        remainder *= 10u32;
        quotient = quotient * 10u32 + &remainder / denominator;
        remainder %= denominator;
        exponent = exponent.checked_sub(1)?;
    }
    let mut dropped = BigUint::ZERO;
    while quotient >= limit {
        dropped = &quotient % 10u32;
        quotient /= 10u32;
        exponent = exponent.checked_add(1)?;
    }
    let up = u128::from(dropped >= BigUint::from(5u32));
    Some((u128::try_from(quotient).ok()? + up, exponent))
}

fn without_small_tens(mut number: u128) -> (u128, i32) {
    if let Ok(word) = u64::try_from(number) {
        let (word, tens) = without_tens_of_word(word);
        return (word.into(), tens);
    }
    let mut tens = 0;
    for (power, zeros) in
        [(10u128.pow(32), 32), (10u128.pow(16), 16), (10u128.pow(8), 8), (10_000, 4), (100, 2), (10, 1)]
    {
        if number.is_multiple_of(power) {
            number /= power;
            tens += zeros;
        }
    }
    (number, tens)
}

/// The same of a machine word, of which the remainders are found without a division.
fn without_tens_of_word(mut number: u64) -> (u64, i32) {
    let mut tens = 0;
    if number == 0 {
        return (number, tens);
    }
    for (power, zeros) in [(10u64.pow(16), 16), (10u64.pow(8), 8), (10_000, 4), (100, 2), (10, 1)] {
        if number.is_multiple_of(power) {
            number /= power;
            tens += zeros;
        }
    }
    (number, tens)
}

#[cfg(test)]
mod tests;
