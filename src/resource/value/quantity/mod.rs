//! Canonical quantities: a value with a UCUM code in the base units of UCUM, as Pathling writes it (schema 3.1).
//!
//! Factors are exact fractions, so a canonical value has up to 38 right digits. Two things differ from Pathling:
//! trailing zeros are never written (it writes 311.14 K as 31114 × 10^18 at scale 20; the number is the same), and
//! a unit on a scale that is not linear (`B`, `[pH]`) has no canonical form.

use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use arrow::datatypes::i256;
use octofhir_ucum::{Dimension, Number, SpecialKind, UnitExpr, UnitRecord, parse_expression};

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
    factor: Ratio,
    /// Added before the factor is applied: × 10^-2. Only temperatures have one.
    offset_hundredths: i64,
}

/// The units met so far, by their codes.
#[derive(Default)]
pub struct Units {
    by_code: ByCode,
}

type ByCode = HashMap<Box<str>, Option<Arc<Unit>>>;

/// Those that any batch has met: what a code stands for never changes, and finding it out takes as long as some lines.
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
                    SpecialKind::Celsius => (27_315, Ratio::ONE),
                    SpecialKind::Fahrenheit => (45_967, Ratio::new(5, 9, 0)?),
                    SpecialKind::Reaumur => (21_852, Ratio::new(5, 4, 0)?),
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
        let product = i256::from_i128(digits.checked_abs()?).checked_mul(self.factor.numerator)?;
        let exponent = self.factor.exponent.checked_sub(scale)?;
        let rounded = divide(product, self.factor.denominator, exponent)?;
        Some(CanonicalValue { mantissa: if digits < 0 { -rounded.mantissa } else { rounded.mantissa }, ..rounded })
    }
}

/// A lone temperature unit, and whether it has a prefix.
fn temperature(expression: &UnitExpr) -> Option<(SpecialKind, &'static UnitRecord, bool)> {
    match expression {
        UnitExpr::Annotated(inner, _) => temperature(inner),
        UnitExpr::Symbol(code) => {
            let (prefix, unit) = lookup(code)?;
            unit.special.is_special().then_some((unit.special, unit, prefix.is_some()))
        }
        _ => None,
    }
}

fn lookup(code: &str) -> Option<(Option<Number>, &'static UnitRecord)> {
    let prefixed = (1..code.len().min(3)).rev().find_map(|length| {
        let (prefix, atom) = (code.get(..length)?, code.get(length..)?);
        let prefix = octofhir_ucum::find_prefix(prefix)?;
        let unit = octofhir_ucum::find_unit(atom).filter(|unit| unit.is_metric)?;
        Some((Some(prefix.factor), unit))
    });
    prefixed.or_else(|| Some((None, octofhir_ucum::find_unit(code)?)))
}

/// A factor and the exponents of the base units.
struct Term {
    factor: Ratio,
    exponents: [i8; 7],
}

impl Term {
    /// The depth of an expression has a limit where it is parsed.
    fn of(expression: &UnitExpr) -> Option<Self> {
        match expression {
            UnitExpr::Symbol(code) => {
                let (prefix, unit) = lookup(code)?;
                if unit.special.is_special() {
                    return None;
                }
                let prefix = prefix.map_or(Some(Ratio::ONE), Ratio::exact)?;
                Some(Self { factor: prefix.multiply(Ratio::exact(unit.factor)?)?, exponents: unit.dim.0 })
            }
            UnitExpr::Numeric(number) => Some(Self { factor: Ratio::exact(*number)?, ..Self::one() }),
            UnitExpr::Annotation(_) => Some(Self::one()),
            UnitExpr::Annotated(inner, _) => Self::of(inner),
            UnitExpr::Power(base, exponent) => Self::one().times(&Self::of(base)?, *exponent),
            UnitExpr::Product(terms) => terms.iter().try_fold(Self::one(), |all, term| all.times(&Self::of(term)?, 1)),
            UnitExpr::Quotient(over, under) => Self::of(over)?.times(&Self::of(under)?, -1),
            UnitExpr::Reciprocal(under) => Self::one().times(&Self::of(under)?, -1),
        }
    }

    fn one() -> Self {
        Self { factor: Ratio::ONE, exponents: [0; 7] }
    }

    fn times(mut self, other: &Self, exponent: i32) -> Option<Self> {
        self.factor = self.factor.multiply(other.factor.power(exponent)?)?;
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

/// `numerator / denominator × 10^exponent`; in lowest terms, positive, the denominator never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ratio {
    numerator: i256,
    denominator: i256,
    exponent: i32,
}

const TEN: i256 = i256::from_i128(10);

impl Ratio {
    const ONE: Self = Self { numerator: i256::ONE, denominator: i256::ONE, exponent: 0 };

    fn new(numerator: i128, denominator: i128, exponent: i32) -> Option<Self> {
        let (numerator, denominator) = (i256::from_i128(numerator), i256::from_i128(denominator));
        Self { numerator, denominator, exponent }.lowest()
    }

    /// What a factor of 28 digits stands for: itself, or the fraction that was rounded to it. `U` is 1/60 µmol/s: a long
    /// factor that becomes a short number when multiplied by a small one was divided by that.
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
                Self::new(numerator, denominator, exponent.checked_add(10)?)
            }
            None => Self::new(digits, 1, exponent),
        }
    }

    fn multiply(self, other: Self) -> Option<Self> {
        // Crosswise first, so that what cancels cannot overflow.
        let (left, right) = (gcd(self.numerator, other.denominator), gcd(other.numerator, self.denominator));
        let product = Self {
            numerator: self.numerator.checked_div(left)?.checked_mul(other.numerator.checked_div(right)?)?,
            denominator: self.denominator.checked_div(right)?.checked_mul(other.denominator.checked_div(left)?)?,
            exponent: self.exponent.checked_add(other.exponent)?,
        };
        product.lowest()
    }

    fn power(self, exponent: i32) -> Option<Self> {
        let mut base = if exponent < 0 {
            Self { numerator: self.denominator, denominator: self.numerator, exponent: self.exponent.checked_neg()? }
        } else {
            self
        };
        let mut left = exponent.unsigned_abs();
        let mut result = Self::ONE;
        while left > 0 {
            if left & 1 == 1 {
                result = result.multiply(base)?;
            }
            left >>= 1;
            if left > 0 {
                base = base.multiply(base)?;
            }
        }
        Some(result)
    }

    fn lowest(self) -> Option<Self> {
        let (numerator, over) = without_tens(self.numerator);
        let (denominator, under) = without_tens(self.denominator);
        let common = gcd(numerator, denominator);
        Some(Self {
            numerator: numerator.checked_div(common)?,
            denominator: denominator.checked_div(common)?,
            exponent: self.exponent.checked_add(over)?.checked_sub(under)?,
        })
    }
}

fn without_tens(mut number: i256) -> (i256, i32) {
    let mut tens = 0;
    while number != i256::ZERO && number.wrapping_rem(TEN) == i256::ZERO {
        number = number.wrapping_div(TEN);
        tens += 1;
    }
    (number, tens)
}

/// One where there is none.
fn gcd(mut a: i256, mut b: i256) -> i256 {
    while b != i256::ZERO {
        (a, b) = (b, a.wrapping_rem(b));
    }
    if a == i256::ZERO { i256::ONE } else { a }
}

/// Two numbers of the form digits × 10^-scale, added.
fn sum(a: (i128, i32), b: (i128, i32)) -> Option<(i128, i32)> {
    let (small, large) = if a.1.cmp(&b.1) == Ordering::Less { (a, b) } else { (b, a) };
    let places = u32::try_from(i64::from(large.1) - i64::from(small.1)).ok()?;
    let aligned = small.0.checked_mul(10i128.checked_pow(places)?)?;
    Some((aligned.checked_add(large.0)?, large.1))
}

/// `product / denominator × 10^exponent`, both positive.
fn divide(product: i256, denominator: i256, exponent: i32) -> Option<CanonicalValue> {
    let fits = |number: i256| number.to_i128().and_then(|number| u128::try_from(number).ok());
    let small = fits(product).zip(fits(denominator).and_then(|denominator| u64::try_from(denominator).ok()));
    let (quotient, exponent) = match small.filter(|(product, _)| *product < LIMIT) {
        Some((product, denominator)) => divide_small(product, denominator.into(), exponent)?,
        None => divide_large(product, denominator, exponent)?,
    };
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

/// What nearly every measurement needs: eighteen digits at a time.
fn divide_small(product: u128, denominator: u128, mut exponent: i32) -> Option<(u128, i32)> {
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

fn divide_large(product: i256, denominator: i256, mut exponent: i32) -> Option<(u128, i32)> {
    let limit = i256::from_i128(10i128.pow(38));
    let mut quotient = product.checked_div(denominator)?;
    let mut remainder = product.checked_rem(denominator)?;
    while remainder != i256::ZERO && quotient < limit {
        let shifted = remainder.checked_mul(TEN)?;
        quotient = quotient.checked_mul(TEN)?.checked_add(shifted.checked_div(denominator)?)?;
        remainder = shifted.checked_rem(denominator)?;
        exponent = exponent.checked_sub(1)?;
    }
    let mut dropped = i256::ZERO;
    while quotient >= limit {
        dropped = quotient.wrapping_rem(TEN);
        quotient = quotient.wrapping_div(TEN);
        exponent = exponent.checked_add(1)?;
    }
    let up = u128::from(dropped >= i256::from_i128(5));
    Some((u128::try_from(quotient.to_i128()?).ok()? + up, exponent))
}

fn without_small_tens(mut number: u128) -> (u128, i32) {
    let mut tens = 0;
    if number == 0 {
        return (number, tens);
    }
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

#[cfg(test)]
mod tests;
