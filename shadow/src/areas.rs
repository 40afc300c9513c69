//! The guest-state area and the exit information, copied whole: a slot range for each width.

use std::ops::Range;
use vmcs12::field::table::{COUNT, FIELDS, VM_INSTRUCTION_ERROR};
use vmcs12::field::{Area, Vmcs, Width};

const fn slots(area: Area, width: Width) -> Range<usize> {
    let mut first = COUNT;
    let mut end = 0;
    let mut slot = 0;
    while slot < COUNT {
        let row = &FIELDS[slot];
        if row.area() as u8 == area as u8 && row.width() as u8 == width as u8 {
            if first == COUNT {
                first = slot;
            }
            assert!(end == 0 || end == slot, "an area's fields of one width stand together");
            end = slot + 1;
        }
        slot += 1;
    }
    first..end
}

const GUEST: [Range<usize>; 4] = [
    slots(Area::Guest, Width::W16),
    slots(Area::Guest, Width::W64),
    slots(Area::Guest, Width::W32),
    slots(Area::Guest, Width::Natural),
];

const EXIT_INFORMATION: [Range<usize>; 3] = [
    slots(Area::ExitInformation, Width::W64),
    // The first 32-bit field tells of instructions, not of exits.
    VM_INSTRUCTION_ERROR.slot() + 1..slots(Area::ExitInformation, Width::W32).end,
    slots(Area::ExitInformation, Width::Natural),
];

const _: () = assert!(slots(Area::ExitInformation, Width::W32).start == VM_INSTRUCTION_ERROR.slot());

/// Copies the guest-state area.
pub(crate) fn copy_guest(to: &mut Vmcs, from: &Vmcs) {
    GUEST.into_iter().for_each(|slots| to.copy_slots(from, slots));
}

/// Copies what an exit recorded.
pub(crate) fn copy_exit_information(to: &mut Vmcs, from: &Vmcs) {
    EXIT_INFORMATION.into_iter().for_each(|slots| to.copy_slots(from, slots));
}
