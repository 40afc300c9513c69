//! The time-stamp counter of L2: L1's scaling and offset on top of L0's. SDM Vol. 3, "VMX-Execution Control Fields",
//! "Changes to Instruction Behavior in VMX Non-Root Operation" (RDTSC).

use vmcs12::control::{USE_TSC_OFFSETTING, USE_TSC_SCALING};
use vmcs12::field::{Vmcs, table::*};

/// Fraction bits of a TSC multiplier.
const FRACTION: u32 = 48;
const ONE: u64 = 1 << FRACTION;

/// value × multiplier, for an offset: a signed number.
fn scale_offset(offset: u64, multiplier: u64) -> u64 {
    ((i128::from(offset as i64) * i128::from(multiplier)) >> FRACTION) as u64
}

fn offset(vmcs: &Vmcs) -> u64 {
    if vmcs.has(USE_TSC_OFFSETTING) { vmcs.get(TSC_OFFSET) } else { 0 }
}

fn multiplier(vmcs: &Vmcs) -> u64 {
    if vmcs.has(USE_TSC_OFFSETTING) && vmcs.has(USE_TSC_SCALING) { vmcs.get(TSC_MULTIPLIER) } else { ONE }
}

/// L2's counter is L1's × L1's multiplier + L1's offset, and L1's is the machine's × L0's multiplier + L0's offset.
pub(super) fn merge(vmcs02: &mut Vmcs, vmcs01: &Vmcs, vmcs12: &Vmcs) {
    let (ours, theirs) = (multiplier(vmcs01), multiplier(vmcs12));
    let composed = ((u128::from(ours) * u128::from(theirs)) >> FRACTION) as u64;
    vmcs02.set(TSC_MULTIPLIER, composed);
    vmcs02.set(TSC_OFFSET, scale_offset(offset(vmcs01), theirs).wrapping_add(offset(vmcs12)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_add_and_wrap() {
        assert_eq!(scale_offset(5, ONE), 5);
        assert_eq!(scale_offset((-5_i64) as u64, ONE), (-5_i64) as u64);
    }

    #[test]
    fn a_negative_offset_is_scaled_as_a_negative_number() {
        assert_eq!(scale_offset((-6_i64) as u64, ONE / 2), (-3_i64) as u64);
    }
}
