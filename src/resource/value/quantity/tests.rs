use proptest::prelude::*;

use super::*;

fn canonical(value: &str, code: &str) -> Option<(i128, i32, String)> {
    let unit = Unit::of(code)?;
    let canonical = unit.canonical(Decimal::parse(value).unwrap())?;
    Some((canonical.mantissa, canonical.scale, unit.canonical_code))
}

#[test]
fn canonical_quantities_are_those_that_pathling_writes() {
    for (value, code, mantissa, scale, canonical_code) in [
        ("167.49", "mg/dL", 16749, 1, "g.m-3"),
        ("181.2", "cm", 1812, 3, "m"),
        ("86", "/min", 14_333_333_333_333_333_333_333_333_333_333_333_333, 37, "s-1"),
        ("138.03", "mmol/L", 83_123_608_910_280_000_000_000_000, 0, "m-3"),
        ("93.922", "fL", 93922, 21, "m+3"),
        ("47.714", "%", 47714, 5, "1"),
        ("3", "{score}", 3, 0, "1"),
        ("97.451", "U/L", 97_810_606_533_793_333_333_333_333_333_333_333_333, 17, "m-3.s-1"),
        ("77.672", "mL/min", 12_945_333_333_333_333_333_333_333_333_333_333_333, 43, "m+3.s-1"),
    ] {
        assert_eq!(canonical(value, code), Some((mantissa, scale, canonical_code.to_owned())), "{value} {code}");
    }
    assert_eq!(Unit::of("pH").unwrap().canonical_code, "C-2.g.m+2", "a picohenry");
    assert!(Unit::of("(score)").is_none());
}

#[test]
fn a_temperature_is_the_number_that_pathling_writes_without_its_zeros() {
    let kelvin = |mantissa, scale| Some((mantissa, scale, "K".to_owned()));
    assert_eq!(canonical("37.99", "Cel"), kelvin(31114, 2));
    assert_eq!(canonical("-273.15", "Cel"), kelvin(0, 0));
    assert_eq!(canonical("98.6", "[degF]"), kelvin(31015, 2));
    assert_eq!(canonical("-300", "Cel"), kelvin(-2685, 2), "below zero kelvin is still a number");
}

#[test]
fn a_code_without_a_linear_canonical_form_has_none() {
    for code in
        ["", "B", "dB", "[pH]", "Cel/min", "mCel", "mg//dL", "furlong", "m99999999999", "m127.m127", "10*2000000000"]
    {
        let unit = Unit::of(code);
        assert!(unit.and_then(|unit| unit.canonical(Decimal::parse("1")?)).is_none(), "{code}");
    }
}

#[test]
fn factors_are_exact_where_the_definition_is() {
    for (value, code, mantissa, scale) in [
        ("1", "[in_i]", 254, 4),
        ("1", "[lb_av]", 45_359_237, 5),
        ("3.5", "mL/min/kg", 58_333_333_333_333_333_333_333_333_333_333_333_333, 48),
        ("120", "mm[Hg]", 15_998_640, 0),
        ("1", "d", 86400, 0),
        ("-2", "km", -2000, 0),
        ("0.00", "mg", 0, 0),
        ("5", "m[IU]/L", 5, 0),
        ("1", "kat", 602_214_076_000_000_000_000_000, 0),
    ] {
        let found = canonical(value, code).map(|(mantissa, scale, _)| (mantissa, scale));
        assert_eq!(found, Some((mantissa, scale)), "{value} {code}");
    }
}

#[test]
fn the_same_code_is_looked_up_once() {
    let mut units = Units::default();
    assert_eq!(units.unit("mg/dL").unwrap().canonical_code, "g.m-3");
    assert!(units.unit("(score)").is_none());
    assert!(units.unit("mg/dL").is_some());
    assert_eq!(units.by_code.len(), 2);
    assert!(units.unit(&"m".repeat(1000)).is_none());
}

proptest! {
    #[test]
    fn both_ways_to_divide_agree(product in 1..LIMIT, shrink in 0u32..38, denominator in 1u64..) {
        let product = product / 10u128.pow(shrink);
        let stripped = |(quotient, exponent): (u128, i32)| {
            let (quotient, tens) = without_small_tens(quotient);
            (quotient, if quotient == 0 { 0 } else { exponent + tens })
        };
        let small = divide_small(product, denominator.into(), 7).map(stripped);
        prop_assert_eq!(small, divide_large(&product.into(), &denominator.into(), 7).map(stripped));
    }

    #[test]
    fn no_code_and_no_value_panics(code in "[a-zA-Z0-9/.()\\[\\]{}*'%^+-]{0,12}", value in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?([eE][+-]?[0-9]{1,12})?") {
        if let (Some(unit), Some(value)) = (Unit::of(&code), Decimal::parse(&value)) {
            let _ = unit.canonical(value);
        }
    }
}
