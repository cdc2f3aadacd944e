//! Kubernetes' quantities (`500m`, `1.5Gi`, `2e3`) and the short texts for ages and durations.
//!
//! A quantity is held exactly, as a decimal integer in nano units; Kubernetes rounds up below that, and so does this.

use std::cmp::Ordering;
use std::fmt;

/// Units of one in a [`Quantity`].
const NANO: i128 = 1_000_000_000;

/// Largest value that is held: that of Kubernetes, 2^63-1 whole units. Larger ones are capped.
const WHOLE_MAX: i128 = i64::MAX as i128;

/// How the number was written, and is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suffix {
    /// `Ki`, `Mi`, `Gi`.
    Binary,
    /// `m`, none, `k`, `M`, `G`.
    Decimal,
    /// `e3`.
    Exponent,
}

/// A `resource.Quantity`.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    suffix: Suffix,
}

/// Why a text is not a quantity; the texts are Kubernetes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Number,
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, suffix: Suffix::Decimal };

    /// Parses a quantity as Kubernetes does.
    ///
    /// # Errors
    /// [`QuantityError`], with Kubernetes' text.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, unit) = rest.split_at(digits);
        if number.is_empty() {
            return Err(QuantityError::Format);
        }
        let letters = unit.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(unit.len());
        let tail = unit[letters..].strip_prefix(['-', '+']).unwrap_or(&unit[letters..]);
        if !tail.bytes().all(|b| b.is_ascii_digit()) {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Number);
        }
        let (power, suffix) = parse_unit(unit)?;
        let nanos = match power {
            Power::Ten(exponent) => scale_decimal(whole, fraction, exponent),
            Power::Two(bits) => scale_binary(whole, fraction, bits),
        };
        let nanos = nanos.min(WHOLE_MAX * NANO);
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, suffix })
    }

    /// From a JSON value: a text or a number.
    ///
    /// # Errors
    /// As [`Quantity::parse`].
    pub fn from_value(value: &serde_json::Value) -> Result<Self, QuantityError> {
        match value {
            serde_json::Value::String(text) => Self::parse(text),
            serde_json::Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(QuantityError::Format),
        }
    }

    /// Thousandths, rounded up: what CPU is counted in. Capped at the ends of `i64`.
    pub fn milli(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    /// Whole units, rounded up: bytes, or a count. Capped at the ends of `i64`.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let rounded = self.nanos.div_euclid(unit) + i128::from(self.nanos.rem_euclid(unit) != 0);
        rounded.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// A decimal quantity of whole units.
    pub fn from_whole(value: i64) -> Self {
        Quantity { nanos: i128::from(value) * NANO, suffix: Suffix::Decimal }
    }

    /// The sum, written like `self` unless that is zero.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let suffix = if self.nanos == 0 { other.suffix } else { self.suffix };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), suffix }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form: no fraction, the largest suffix that keeps every digit.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.unsigned_abs();
        let nano = NANO.unsigned_abs();
        // Kubernetes writes a binary quantity below 1024, or with a fraction, as a decimal one.
        if self.suffix == Suffix::Binary && nanos.is_multiple_of(nano) && nanos / nano >= 1024 {
            let mut number = nanos / nano;
            let mut unit = 0;
            while number.is_multiple_of(1024) && unit + 1 < BINARY.len() {
                number /= 1024;
                unit += 1;
            }
            return write!(f, "{sign}{number}{}", BINARY[unit]);
        }
        let mut number = nanos;
        let mut exponent = -9;
        while number.is_multiple_of(1000) && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.suffix == Suffix::Exponent {
            return match exponent {
                0 => write!(f, "{sign}{number}"),
                _ => write!(f, "{sign}{number}e{exponent}"),
            };
        }
        let unit = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(unit, _)| unit);
        write!(f, "{sign}{number}{unit}")
    }
}

enum Power {
    Ten(i32),
    Two(u32),
}

fn parse_unit(unit: &str) -> Result<(Power, Suffix), QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == unit) {
        return Ok((Power::Ten(*exponent), Suffix::Decimal));
    }
    if let Some(at) = BINARY.iter().skip(1).position(|name| *name == unit) {
        return Ok((Power::Two(10 * (at as u32 + 1)), Suffix::Binary));
    }
    match unit.strip_prefix(['e', 'E']) {
        Some(exponent) => {
            exponent.parse().map(|e| (Power::Ten(e), Suffix::Exponent)).map_err(|_| QuantityError::Suffix)
        }
        None => Err(QuantityError::Suffix),
    }
}

/// `whole.fraction * 10^exponent` in nano units, rounded up and capped.
fn scale_decimal(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let digits: String = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let shift = i64::from(exponent) + 9 - fraction.len() as i64;
    let cap = WHOLE_MAX * NANO;
    if digits.len() as i64 + shift > 30 {
        return cap;
    }
    if shift >= 0 {
        let zeros = "0".repeat(shift as usize);
        return [digits, &zeros].concat().parse().unwrap_or(cap);
    }
    let keep = digits.len() as i64 + shift;
    if keep <= 0 {
        return 1;
    }
    let (kept, dropped) = digits.split_at(keep as usize);
    let up = i128::from(dropped.bytes().any(|b| b != b'0'));
    kept.parse::<i128>().map_or(cap, |n| n + up)
}

fn scale_binary(whole: &str, fraction: &str, bits: u32) -> i128 {
    // At most 27 digits of each part count: beyond, the whole is capped and the fraction far below a nano unit.
    let cap = WHOLE_MAX * NANO;
    let whole = whole.trim_start_matches('0');
    if whole.len() > 19 {
        return cap;
    }
    let fraction = &fraction[..fraction.len().min(18)];
    let unit = 1i128 << bits;
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(cap) };
    if whole > WHOLE_MAX / unit {
        return cap;
    }
    let part = match fraction.parse::<i128>() {
        Ok(number) => {
            // number < 10^18 and unit <= 2^60, so the product with NANO needs splitting to stay below 2^127.
            let base = 10i128.pow(fraction.len() as u32);
            let scaled = number * unit;
            let (units, rest) = (scaled / base, scaled % base);
            let nanos = rest * NANO;
            units * NANO + nanos / base + i128::from(nanos % base != 0)
        }
        Err(_) => 0,
    };
    whole * unit * NANO + part
}

/// An age or a duration as kubectl prints it: `45s`, `2m5s`, `3h12m`, `2d3h`, `400d`, `3y20d`. Negative ones are `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    if seconds < 2 * 60 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if minutes < 3 * 60 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 24 * 8 {
        two(days, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{days}d")
    } else if hours < 24 * 365 * 8 {
        two(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}

/// The age of something that began at `since`; `<unknown>` without a time.
pub fn age(since: Option<jiff::Timestamp>, now: jiff::Timestamp) -> String {
    match since {
        Some(since) => human_duration(now.as_second() - since.as_second()),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).map_or_else(|e| e.to_string(), |q| q.to_string())
    }

    #[test]
    fn quantities_are_written_in_kubernetes_canonical_form() {
        for (text, want) in [
            ("0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("512Ki", "512Ki"),
            ("0.1m", "100u"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1e3", "1e3"),
            ("1E6", "1e6"),
            ("-250m", "-250m"),
            ("+3", "3"),
            ("0.5Ki", "512"),
            ("9223372036854775807000", "9223372036854775807"),
            (".5", "500m"),
        ] {
            assert_eq!(canonical(text), want, "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let q = |text: &str| Quantity::parse(text).expect("a quantity");
        assert_eq!(q("1500u").milli(), 2);
        assert_eq!(q("250m").milli(), 250);
        assert_eq!(q("2").milli(), 2000);
        assert_eq!(q("128Mi").value(), 128 << 20);
        assert_eq!(q("100m").value(), 1);
        assert_eq!(q("-1500u").milli(), -1);
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1").plus(&q("500m")).to_string(), "1500m");
    }

    #[test]
    fn what_is_no_quantity_gets_kubernetes_text() {
        assert_eq!(Quantity::parse("lots"), Err(QuantityError::Format));
        assert_eq!(Quantity::parse(""), Err(QuantityError::Format));
        assert_eq!(Quantity::parse("1.2.3"), Err(QuantityError::Number));
        assert_eq!(Quantity::parse("1KK"), Err(QuantityError::Suffix));
        assert_eq!(Quantity::parse("1 Gi"), Err(QuantityError::Format));
    }

    #[test]
    fn ages_are_as_short_as_kubectl_prints_them() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (3 * 3600 + 12 * 60, "3h12m"),
            (8 * 3600, "8h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
            (-1, "0s"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
    }

    proptest! {
        #[test]
        fn a_canonical_quantity_is_its_own_canonical_form(text in "[+-]?[0-9.]{0,24}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,3}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let written = quantity.to_string();
                let again = Quantity::parse(&written);
                prop_assert_eq!(again, Ok(quantity), "{} -> {}", text, written);
            }
        }
    }
}
