//! Values of options: sizes, durations, processors.

use std::time::Duration;

use crate::config::{CpuModel, FeatureChange};

#[rustfmt::skip]
const SIZES: &[(char, u64)] = &[
    ('K', 1 << 10),
    ('M', 1 << 20),
    ('G', 1 << 30),
    ('T', 1 << 40),
];

#[rustfmt::skip]
const DURATIONS: &[(&str, f64)] = &[
    ("ms", 0.001),
    ("s",  1.0),
    ("m",  60.0),
    ("h",  3600.0),
];

const PAGE: u64 = 4096;
const LEAST_MEMORY: u64 = 1 << 20;

/// `512M`, `1G`: a number with K, M, G or T, or bytes.
///
/// # Errors
/// What is no size.
pub fn size(text: &str) -> Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let unit = SIZES.iter().find_map(|&(unit, bytes)| Some((upper.strip_suffix(unit)?, bytes)));
    let (number, bytes) = unit.unwrap_or((&upper, 1));
    let number: u64 = number.parse().map_err(|_| "not a size; write it as 512M or 1G".to_owned())?;
    number.checked_mul(bytes).ok_or_else(|| "more than 2^64 bytes".to_owned())
}

/// A size that RAM can have.
///
/// # Errors
/// What is no size, too little, or no number of whole pages.
pub fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < LEAST_MEMORY || bytes % PAGE != 0 {
        return Err("guest memory is at least 1M and a multiple of 4K".to_owned());
    }
    Ok(bytes)
}

/// `90s`, `5m`, `1.5h`, `250ms`, or seconds.
///
/// # Errors
/// What is no duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    let unit = DURATIONS
        .iter()
        .find_map(|&(unit, seconds)| Some((text.strip_suffix(unit)?.parse::<f64>().ok()?, seconds)));
    let parsed = unit.or_else(|| Some((text.parse().ok()?, 1.0)));
    let duration = parsed.and_then(|(number, seconds)| Duration::try_from_secs_f64(number * seconds).ok());
    duration.ok_or_else(|| "not a duration; write it as 90s or 5m".to_owned())
}

/// `PROFILE[,+feature,-feature]`.
///
/// # Errors
/// A change without its sign, or nothing where a name should be.
pub fn cpu(text: &str) -> Result<CpuModel, String> {
    let mut words = text.split(',');
    let profile = words.next().unwrap_or_default().to_owned();
    let changes = words.map(change).collect::<Result<Vec<_>, _>>()?;
    if profile.is_empty() {
        return Err("a processor begins with a profile's name".to_owned());
    }
    Ok(CpuModel { profile, changes })
}

fn change(word: &str) -> Result<FeatureChange, String> {
    let (sign, name) = word.split_at_checked(1).unwrap_or_default();
    match sign {
        "+" if !name.is_empty() => Ok(FeatureChange::Add(name.to_owned())),
        "-" if !name.is_empty() => Ok(FeatureChange::Remove(name.to_owned())),
        _ => Err(format!("'{word}': a feature is added as +name or removed as -name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1g"), Ok(1 << 30));
        for wrong in ["", "M", "1.5G", "-1", "1X", "99999999999T", "1 G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_whole_pages() {
        assert_eq!(memory("256M"), Ok(256 << 20));
        for wrong in ["0", "4K", "1048577"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("12"), Ok(Duration::from_secs(12)));
        for wrong in ["", "s", "-1s", "1y", "nan", "1e30h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_processor_is_a_profile_and_changes() {
        let model = cpu("haswell,+avx2,-sse4.2").unwrap();
        assert_eq!(model.profile, "haswell");
        let expected = [FeatureChange::Add("avx2".into()), FeatureChange::Remove("sse4.2".into())];
        assert_eq!(model.changes, expected);
        assert_eq!(model.to_string(), "haswell,+avx2,-sse4.2");
        for wrong in ["", ",+avx", "haswell,avx", "haswell,+", "haswell,", "haswell,é"] {
            assert!(cpu(wrong).is_err(), "{wrong}");
        }
    }
}
