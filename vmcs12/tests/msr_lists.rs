//! The entries of the MSR lists. SDM Vol. 3, "Loading MSRs", "Saving MSRs".

use vmcs12::check::msr_area::{Entry, LOAD_ON_ENTRY, LOAD_ON_EXIT, STORE_ON_EXIT, first_broken};

fn entry(index: u32) -> Entry {
    Entry { index, ..Entry::default() }
}

/// The entries that break each rule alone.
const LOADS: &[(&str, Entry)] = &[
    ("fs_base", Entry { index: 0xc000_0100, reserved: 0, data: 0 }),
    ("gs_base", Entry { index: 0xc000_0101, reserved: 0, data: 0 }),
    ("x2apic", Entry { index: 0x830, reserved: 0, data: 0 }),
    ("smm_only", Entry { index: 0x9b, reserved: 0, data: 0 }),
    ("model_specific", Entry { index: 0x79, reserved: 0, data: 0 }),
    ("reserved", Entry { index: 0x10, reserved: 1, data: 0 }),
];
const STORES: &[(&str, Entry)] = &[
    ("x2apic", Entry { index: 0x8ff, reserved: 0, data: 0 }),
    ("smm_only", Entry { index: 0x9e, reserved: 0, data: 0 }),
    ("reserved", Entry { index: 0x10, reserved: 1 << 31, data: 0 }),
];

#[test]
fn every_rule_has_an_entry_that_breaks_it() {
    for (prefix, rules, cases) in [
        ("msrload", LOAD_ON_ENTRY, LOADS),
        ("msrload_exit", LOAD_ON_EXIT, LOADS),
        ("msrstore", STORE_ON_EXIT, STORES),
    ] {
        assert_eq!(rules.len(), cases.len());
        for (name, entry) in cases {
            let broken = first_broken(rules, *entry).map(|rule| rule.id);
            assert_eq!(broken, Some(format!("{prefix}.{name}").as_str()));
        }
    }
}

#[test]
fn an_ordinary_msr_breaks_none() {
    assert!(first_broken(LOAD_ON_ENTRY, entry(0xc000_0102)).is_none());
    assert!(first_broken(LOAD_ON_ENTRY, entry(0x7ff)).is_none());
    assert!(first_broken(LOAD_ON_ENTRY, entry(0x900)).is_none());
    assert!(first_broken(STORE_ON_EXIT, entry(0x10)).is_none());
}

#[test]
fn entries_are_sixteen_bytes_little_endian() {
    let entry = Entry { index: 0x0403_0201, reserved: 0x0807_0605, data: 0x100f_0e0d_0c0b_0a09 };
    assert_eq!(entry.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(Entry::from_bytes(entry.to_bytes()), entry);
}
