//! The VMCS region in guest memory.

use vmcs12::field::{AnyField, Vmcs, table};
use vmcs12::region::{self, LaunchState};

/// A value for each slot that differs in every byte pair.
fn pattern(slot: usize) -> u64 {
    (slot as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[test]
fn every_field_survives_a_store_and_a_load() {
    let mut vmcs = Vmcs::default();
    for slot in 0..table::COUNT {
        vmcs.set_raw(AnyField::at(slot), pattern(slot));
    }
    let mut page = [0; region::SIZE];
    region::store(&vmcs, &mut page);
    let back = region::load(&page);
    for slot in 0..table::COUNT {
        let field = AnyField::at(slot);
        assert_eq!(back.raw(field), vmcs.raw(field), "{}", field.row().name);
    }
}

#[test]
fn a_store_leaves_the_header_alone() {
    let mut page = [0xaa; region::SIZE];
    region::store(&Vmcs::default(), &mut page);
    assert_eq!(page[..12], [0xaa; 12]);
}

#[test]
fn the_header_is_the_manuals() {
    let mut page = [0; region::SIZE];
    page[..4].copy_from_slice(&0x8000_0012_u32.to_le_bytes());
    assert_eq!(region::revision(&page), 0x12);
    assert!(region::is_shadow(&page));
    region::set_abort_indicator(&mut page, 4);
    assert_eq!(region::abort_indicator(&page), 4);
    assert_eq!(region::launch_state(&page), LaunchState::Clear);
    region::set_launch_state(&mut page, LaunchState::Launched);
    assert_eq!(region::launch_state(&page), LaunchState::Launched);
}

#[test]
fn kvms_fields_stand_at_kvms_offsets() {
    assert_eq!(region::place_of(table::GUEST_RIP.any()), (544, 8));
    assert_eq!(region::place_of(table::VPID.any()), (960, 2));
    assert_eq!(region::place_of(table::EXIT_REASON.any()), (812, 4));
    assert_eq!(region::place_of(table::EPTP_INDEX.any()), (1024, 2));
}
