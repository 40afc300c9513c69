use super::*;

/// 2020-01-01, a Wednesday.
const NEW_YEAR_2020: i64 = 1_577_836_800;

fn clock() -> Rtc {
    Rtc::new(NEW_YEAR_2020, 3 << 30, 2 << 30)
}

fn get(rtc: &mut Rtc, register: usize, now: Nanos) -> u8 {
    rtc.write(0, register as u8, now);
    rtc.read(1, now)
}

fn set(rtc: &mut Rtc, register: usize, value: u8, now: Nanos) {
    rtc.write(0, register as u8, now);
    rtc.write(1, value, now);
}

#[test]
fn the_date_is_bcd_and_advances_with_virtual_time() {
    let mut rtc = clock();
    let shown = |rtc: &mut Rtc, now| TIME.map(|register| get(rtc, register, now));
    assert_eq!(shown(&mut rtc, 0), [0, 0, 0, 4, 1, 1, 0x20, 0x20]);
    let later = (86_400 + 23 * 3600 + 59 * 60 + 58) * SECOND;
    assert_eq!(shown(&mut rtc, later), [0x58, 0x59, 0x23, 5, 2, 1, 0x20, 0x20]);
}

#[test]
fn twelve_hours_and_binary() {
    let mut rtc = clock();
    set(&mut rtc, REGISTER_B, 0x04, 0);
    assert_eq!(get(&mut rtc, 4, 0), 12);
    assert_eq!(get(&mut rtc, 4, 13 * 3600 * SECOND), PM | 1);
    assert_eq!(get(&mut rtc, 2, 45 * 60 * SECOND), 45);
}

#[test]
fn set_holds_the_time_and_starts_it_again() {
    let mut rtc = clock();
    set(&mut rtc, REGISTER_B, 0x82, 0);
    for (register, value) in [(0, 0x30), (2, 0x15), (4, 0x12), (7, 0x24), (8, 0x12), (9, 0x31)] {
        set(&mut rtc, register, value, 0);
    }
    assert_eq!(get(&mut rtc, 0, 5 * SECOND), 0x30);
    set(&mut rtc, REGISTER_B, 0x02, 5 * SECOND);
    assert_eq!(get(&mut rtc, 0, 6 * SECOND), 0x31);
    assert_eq!((get(&mut rtc, 8, 6 * SECOND), get(&mut rtc, 9, 6 * SECOND)), (0x12, 0x31));
}

#[test]
fn update_in_progress_precedes_the_update() {
    let mut rtc = clock();
    assert_eq!(get(&mut rtc, REGISTER_A, SECOND - 244_001), REGISTER_A_DEFAULT);
    assert_eq!(get(&mut rtc, REGISTER_A, SECOND - 244_000), REGISTER_A_DEFAULT | UIP);
    assert_eq!(get(&mut rtc, REGISTER_A, SECOND), REGISTER_A_DEFAULT);
    assert_eq!(get(&mut rtc, REGISTER_D, 0), VALID);
}

#[test]
fn the_periodic_interrupt_comes_again_when_register_c_is_read() {
    let mut rtc = clock();
    assert_eq!(rtc.next_event(), None);
    set(&mut rtc, REGISTER_B, 0x42, 0);
    let first = rtc.next_event().expect("an event");
    assert_eq!(first, SECOND.div_ceil(1024));
    rtc.tick(first);
    assert!(rtc.irq());
    assert_eq!(rtc.next_event(), None, "not before it is acknowledged");
    assert_eq!(get(&mut rtc, REGISTER_C, first), 0xc0);
    assert!(!rtc.irq());
    assert_eq!(rtc.next_event(), Some((2 * SECOND).div_ceil(1024)));
}

#[test]
fn the_alarm_matches_once_a_day_or_by_wildcards() {
    let mut rtc = clock();
    for (register, value) in [(ALARM_HOURS, 0x01), (ALARM_MINUTES, 0x02), (ALARM_SECONDS, 0x03)] {
        set(&mut rtc, register, value, 0);
    }
    set(&mut rtc, REGISTER_B, 0x22, 0);
    let at = (3600 + 120 + 3) * SECOND;
    assert_eq!(rtc.next_event(), Some(at));
    rtc.tick(at - 1);
    assert!(!rtc.irq());
    rtc.tick(at);
    assert_eq!(get(&mut rtc, REGISTER_C, at) & 0xa0, 0xa0);
    assert_eq!(rtc.next_event(), Some(at + DAY * SECOND));
    set(&mut rtc, ALARM_HOURS, ANY, at);
    assert_eq!(rtc.next_event(), Some(at + 3600 * SECOND));
    set(&mut rtc, ALARM_SECONDS, 0x75, at);
    assert_eq!(rtc.next_event(), None, "75 seconds never come");
}

#[test]
fn the_update_ended_interrupt_comes_each_second() {
    let mut rtc = clock();
    set(&mut rtc, REGISTER_B, 0x12, SECOND / 2);
    assert_eq!(rtc.next_event(), Some(SECOND));
    rtc.tick(SECOND);
    assert!(rtc.irq());
    assert_eq!(get(&mut rtc, REGISTER_C, SECOND) & 0x90, 0x90);
}

#[test]
fn ram_keeps_what_is_written_and_the_memory_sizes() {
    let mut rtc = clock();
    set(&mut rtc, 0x40, 0xa5, 0);
    assert_eq!(get(&mut rtc, 0x40, 0), 0xa5);
    let below_4g = u16::from_le_bytes([get(&mut rtc, 0x34, 0), get(&mut rtc, 0x35, 0)]);
    assert_eq!(u64::from(below_4g), ((3u64 << 30) - (16 << 20)) >> 16);
    assert_eq!(get(&mut rtc, 0x5c, 0), 0x80);
    assert_eq!(rtc.read(0, 0), 0xff);
}

#[test]
fn any_bytes_are_a_time() {
    let mut rtc = clock();
    for register in TIME {
        set(&mut rtc, register, 0xff, 0);
        get(&mut rtc, register, u64::MAX);
    }
}
