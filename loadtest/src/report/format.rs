//! Numbers the way people read them: few digits, a unit that fits.

/// Whole numbers from a hundred on with separated thousands, else one decimal, two below ten.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        100.0.. => thousands(value),
        10.0.. => trimmed(format!("{value:.1}")),
        _ => trimmed(format!("{value:.2}")),
    }
}

/// A latency in milliseconds.
pub(crate) fn milliseconds(value: f64) -> String {
    match value {
        10_000.0.. => format!("{} s", number(value / 1e3)),
        1000.0.. => format!("{:.2} s", value / 1e3),
        _ => format!("{} ms", number(value)),
    }
}

/// A size in bytes, by powers of a thousand.
pub(crate) fn bytes(value: f64) -> String {
    match value {
        1e9.. => format!("{} GB", number(value / 1e9)),
        1e6.. => format!("{} MB", number(value / 1e6)),
        1e3.. => format!("{} kB", number(value / 1e3)),
        _ => format!("{} B", number(value)),
    }
}

/// A share as a percentage.
pub(crate) fn percent(value: f64) -> String {
    let digits = usize::from(value.abs() < 0.1);
    format!("{:.digits$} %", value * 100.0)
}

/// A length of time in seconds.
pub(crate) fn duration(value: f64) -> String {
    match value {
        7200.0.. => format!("{} h", number(value / 3600.0)),
        180.0.. => format!("{} min", number(value / 60.0)),
        _ => format!("{} s", number(value)),
    }
}

/// An axis label: thousands and millions as `k` and `M`.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        1e6.. => format!("{} M", trimmed(format!("{:.1}", value / 1e6))),
        1e4.. => format!("{} k", trimmed(format!("{:.1}", value / 1e3))),
        10.0.. => thousands(value),
        0.01.. => trimmed(format!("{value:.2}")),
        0.0 => "0".to_owned(),
        _ => trimmed(format!("{value:.4}")),
    }
}

/// A whole number with separated thousands.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn trimmed(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_few_digits_and_a_unit_that_fits() {
        for (text, expected) in [
            (number(8012.4), "8,012"),
            (number(-1_234_567.0), "-1,234,567"),
            (number(42.04), "42"),
            (number(0.456), "0.46"),
            (number(f64::NAN), "–"),
            (milliseconds(0.82), "0.82 ms"),
            (milliseconds(1234.0), "1.23 s"),
            (bytes(1.45e9), "1.45 GB"),
            (percent(0.354), "35 %"),
            (percent(0.012), "1.2 %"),
            (duration(60.0), "60 s"),
            (duration(900.0), "15 min"),
            (short(80_000.0), "80 k"),
            (short(0.5), "0.5"),
        ] {
            assert_eq!(text, expected);
        }
    }
}
