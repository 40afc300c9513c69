//! The Gregorian calendar: seconds since 1970 to a date and back.

const DAY: i64 = 86_400;
/// Days of 400 years, of which 97 are leap years.
const ERA: i64 = 146_097;
/// Days from 0000-03-01, where a calendar year that ends with its leap day begins, to 1970-01-01.
const EPOCH: i64 = 719_468;

/// A date and a time of day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 is Sunday.
    pub weekday: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

/// Days from 1 March to the first of the `n`th month after it.
fn days_before(n: i64) -> i64 {
    (153 * n + 2) / 5
}

/// Days from 0000-03-01 to 1 March of the year.
fn days_before_year(year: i64) -> i64 {
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400)
}

impl DateTime {
    pub fn from_seconds(seconds: i64) -> Self {
        let of_day = seconds.rem_euclid(DAY) as u32;
        let days = seconds.div_euclid(DAY) + EPOCH;
        // An estimate that is the year or the one after it.
        let estimate = (days * 400).div_euclid(ERA) + 1;
        let year =
            (estimate - 2..=estimate).rev().find(|year| days_before_year(*year) <= days).unwrap_or(estimate);
        let of_year = days - days_before_year(year);
        let month = (0..12).rev().find(|n| days_before(*n) <= of_year).unwrap_or(0);
        Self {
            year: year + i64::from(month >= 10),
            month: ((month + 2) % 12 + 1) as u32,
            day: (of_year - days_before(month) + 1) as u32,
            weekday: (days + 3).rem_euclid(7) as u32,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// The seconds since 1970; fields beyond their range carry over.
    pub fn to_seconds(self) -> i64 {
        let month = (i64::from(self.month) + 9) % 12;
        let year = self.year - i64::from(month >= 10);
        let days = days_before_year(year) + days_before(month) + i64::from(self.day) - 1 - EPOCH;
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * DAY + of_day
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(seconds: i64) -> (i64, u32, u32, u32) {
        let date = DateTime::from_seconds(seconds);
        (date.year, date.month, date.day, date.weekday)
    }

    #[test]
    fn known_days() {
        assert_eq!(parts(0), (1970, 1, 1, 4));
        assert_eq!(parts(951_782_400), (2000, 2, 29, 2));
        assert_eq!(parts(951_868_800), (2000, 3, 1, 3));
        assert_eq!(parts(1_577_836_800), (2020, 1, 1, 3));
        assert_eq!(parts(4_107_542_400), (2100, 3, 1, 1));
        assert_eq!(parts(-1), (1969, 12, 31, 3));
    }

    #[test]
    fn there_and_back() {
        let mut expected = DateTime::from_seconds(-463_000 * DAY);
        for day in 0..900_000i64 {
            let seconds = -463_000 * DAY + day * DAY + 86_399 * (day & 1);
            let date = DateTime::from_seconds(seconds);
            assert_eq!(date.to_seconds(), seconds);
            assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
            if day > 0 {
                assert_eq!(date.weekday, (expected.weekday + 1) % 7);
                assert!(date.day == expected.day + 1 || date.day == 1);
            }
            expected = date;
        }
    }
}
