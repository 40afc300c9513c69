//! Guest registers in KVM's format.

use kvm_bindings::kvm_segment;
use vmcs12::arch::segment::{AccessRights, Segment};

/// A segment register with its hidden part.
#[must_use]
pub fn segment(of: Segment) -> kvm_segment {
    let bit = |field| u8::from(of.rights.get::<bool>(field));
    kvm_segment {
        base: of.base,
        limit: of.limit,
        selector: of.selector,
        type_: of.rights.get(AccessRights::TYPE),
        s: bit(AccessRights::S),
        dpl: of.rights.get(AccessRights::DPL),
        present: bit(AccessRights::P),
        avl: bit(AccessRights::AVL),
        l: bit(AccessRights::L),
        db: bit(AccessRights::DB),
        g: bit(AccessRights::G),
        unusable: bit(AccessRights::UNUSABLE),
        padding: 0,
    }
}
