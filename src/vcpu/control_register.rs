//! L1's writes to CR0 and CR4 bits that L0 owns, and XSETBV.
//!
//! VMX demands CR0.NE and CR4.VMXE of a guest, L1 may have them as it likes: L0 owns them, and L1 reads the shadow.
//! An allowed write changes the shadow and L1 executes its instruction again; this time it takes no exit, and the
//! processor does all the rest of it. SDM Vol. 3, "Guest/Host Masks and Read Shadows for CR0 and CR4".

use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::efer;
use vmcs12::arch::event::Exception;
use vmcs12::field::Vmcs;
use vmcs12::field::table::*;

/// Is L1 in VMX operation?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmxOperation {
    /// VMXON was executed.
    Inside,
    /// It was not, or VMXOFF was.
    Outside,
}

/// Bits of CR0 that must be 1 in VMX operation. SDM Vol. 3, "Restrictions on VMX Operation".
const CR0_FIXED: u64 = cr0::PE | cr0::NE | cr0::PG;
/// Reserved bits of CR0 that fault; those below bit 32 are ignored.
const CR0_HIGH: u64 = 0xffff_ffff_0000_0000;

/// L0's bits of CR0 and CR4 from the start; `supported` are the bits of CR4 that L1 is offered.
pub fn own(vmcs: &mut Vmcs, supported: u64) {
    vmcs.set(CR0_GUEST_HOST_MASK, cr0::NE);
    vmcs.set(CR0_READ_SHADOW, vmcs.get(GUEST_CR0) & cr0::NE);
    vmcs.set(CR4_GUEST_HOST_MASK, cr4::VMXE | !supported);
    vmcs.set(CR4_READ_SHADOW, 0);
    vmcs.set(GUEST_CR0, vmcs.get(GUEST_CR0) | cr0::NE);
    vmcs.set(GUEST_CR4, vmcs.get(GUEST_CR4) | cr4::VMXE);
}

/// L1 has entered or left VMX operation: some of its bits of CR0 are fixed there.
pub fn follow_vmx_operation(vmcs: &mut Vmcs, operation: VmxOperation) {
    match operation {
        VmxOperation::Inside => {
            vmcs.set(CR0_GUEST_HOST_MASK, CR0_FIXED);
            vmcs.set(CR0_READ_SHADOW, CR0_FIXED);
            vmcs.set(CR4_READ_SHADOW, cr4::VMXE);
        }
        VmxOperation::Outside => vmcs.set(CR0_GUEST_HOST_MASK, cr0::NE),
    }
}

/// CR0 as L1 sees it.
pub fn visible_cr0(vmcs: &Vmcs) -> u64 {
    shadowed(vmcs.get(GUEST_CR0), vmcs.get(CR0_GUEST_HOST_MASK), vmcs.get(CR0_READ_SHADOW))
}

/// CR4 as L1 sees it.
pub fn visible_cr4(vmcs: &Vmcs) -> u64 {
    shadowed(vmcs.get(GUEST_CR4), vmcs.get(CR4_GUEST_HOST_MASK), vmcs.get(CR4_READ_SHADOW))
}

const fn shadowed(real: u64, mask: u64, shadow: u64) -> u64 {
    real & !mask | shadow & mask
}

/// MOV to CR0 or LMSW with a bit that L0 owns: L1 is to execute it again, or gets an exception.
///
/// # Errors
/// #GP(0). SDM Vol. 2, "MOV—Move to/from Control Registers".
pub fn write_cr0(vmcs: &mut Vmcs, value: u64) -> Result<(), Exception> {
    let mask = vmcs.get(CR0_GUEST_HOST_MASK);
    let clears_fixed = mask & cr0::PG != 0 && value & CR0_FIXED != CR0_FIXED;
    if clears_fixed || is_refused_cr0(vmcs, value) {
        return Err(Exception::gp(0));
    }
    vmcs.set(CR0_READ_SHADOW, value & mask);
    Ok(())
}

/// What makes MOV to CR0 fault in any mode.
fn is_refused_cr0(vmcs: &Vmcs, value: u64) -> bool {
    let has = |bit| value & bit != 0;
    let enables_paging = has(cr0::PG) && vmcs.get(GUEST_CR0) & cr0::PG == 0;
    let long_without_pae = vmcs.get(GUEST_IA32_EFER) & efer::LME != 0 && vmcs.get(GUEST_CR4) & cr4::PAE == 0;
    value & CR0_HIGH != 0
        || has(cr0::PG) && !has(cr0::PE)
        || has(cr0::NW) && !has(cr0::CD)
        || enables_paging && long_without_pae
        || !has(cr0::PG) && vmcs.get(GUEST_CR4) & cr4::PCIDE != 0
}

/// MOV to CR4 with a bit that L0 owns: L1 is to execute it again, or gets an exception.
///
/// # Errors
/// #GP(0). SDM Vol. 2, "MOV—Move to/from Control Registers".
pub fn write_cr4(
    vmcs: &mut Vmcs,
    value: u64,
    supported: u64,
    operation: VmxOperation,
) -> Result<(), Exception> {
    let clears_fixed = operation == VmxOperation::Inside && value & cr4::VMXE == 0;
    if clears_fixed || value & !supported != 0 || is_refused_cr4(vmcs, value) {
        return Err(Exception::gp(0));
    }
    vmcs.set(CR4_READ_SHADOW, value & cr4::VMXE);
    Ok(())
}

/// What makes MOV to CR4 fault although each bit exists.
fn is_refused_cr4(vmcs: &Vmcs, value: u64) -> bool {
    let long = vmcs.get(GUEST_IA32_EFER) & efer::LMA != 0;
    let old = vmcs.get(GUEST_CR4);
    let sets_pcide = value & !old & cr4::PCIDE != 0;
    long && (value & cr4::PAE == 0 || (value ^ old) & cr4::LA57 != 0)
        || sets_pcide && (!long || vmcs.get(GUEST_CR3) & vmcs12::arch::cr::cr3::PCID != 0)
}

/// XCR0's bits. SDM Vol. 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features".
mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
}

/// The value that XSETBV leaves in XCR0.
///
/// # Errors
/// #GP(0). SDM Vol. 2, "XSETBV—Set Extended Control Register".
pub fn xsetbv(register: u32, value: u64, supported: u64) -> Result<u64, Exception> {
    let avx_without_sse = value & xcr0::AVX != 0 && value & xcr0::SSE == 0;
    if register != 0 || value & xcr0::X87 == 0 || value & !supported != 0 || avx_without_sse {
        return Err(Exception::gp(0));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUPPORTED: u64 = cr4::PAE | cr4::PGE | cr4::VMXE | cr4::PCIDE;
    const LONG: u64 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;

    /// A vCPU in 64-bit mode, outside of VMX operation.
    fn long_mode() -> Vmcs {
        let mut vmcs = Vmcs::default();
        vmcs.set(GUEST_CR0, LONG);
        vmcs.set(GUEST_CR4, cr4::PAE);
        vmcs.set(GUEST_IA32_EFER, efer::LMA | efer::LME);
        own(&mut vmcs, SUPPORTED);
        vmcs
    }

    #[test]
    fn l1_sees_its_own_ne_and_vmxe_and_the_processor_has_both() {
        let mut vmcs = Vmcs::default();
        vmcs.set(GUEST_CR0, cr0::ET);
        own(&mut vmcs, SUPPORTED);
        assert_eq!((visible_cr0(&vmcs), visible_cr4(&vmcs)), (cr0::ET, 0));
        assert_eq!((vmcs.get(GUEST_CR0), vmcs.get(GUEST_CR4)), (cr0::ET | cr0::NE, cr4::VMXE));
    }

    #[test]
    fn an_allowed_write_changes_what_l1_sees_of_l0s_bits_and_nothing_else() {
        let mut vmcs = long_mode();
        write_cr4(&mut vmcs, cr4::PAE | cr4::VMXE | cr4::PGE, SUPPORTED, VmxOperation::Outside).unwrap();
        assert_eq!(visible_cr4(&vmcs), cr4::PAE | cr4::VMXE);
        write_cr0(&mut vmcs, LONG & !cr0::NE).unwrap();
        assert_eq!(visible_cr0(&vmcs), LONG & !cr0::NE);
        assert_eq!(vmcs.get(GUEST_CR0), LONG);
    }

    #[test]
    fn bits_of_cr4_that_are_not_offered_fault() {
        assert!(write_cr4(&mut long_mode(), cr4::PAE | cr4::SMEP, SUPPORTED, VmxOperation::Outside).is_err());
        assert!(write_cr4(&mut long_mode(), cr4::PAE | 1 << 40, SUPPORTED, VmxOperation::Outside).is_err());
    }

    #[test]
    fn writes_that_fault_in_any_mode_fault_here_and_change_nothing() {
        for value in [LONG & !cr0::PE, LONG | cr0::NW, LONG | 1 << 32] {
            let mut vmcs = long_mode();
            assert_eq!(write_cr0(&mut vmcs, value), Err(Exception::gp(0)), "{value:#x}");
            assert!(vmcs == long_mode());
        }
        for value in [cr4::VMXE, cr4::PAE | cr4::LA57] {
            assert!(
                write_cr4(&mut long_mode(), value, u64::MAX, VmxOperation::Outside).is_err(),
                "{value:#x}"
            );
        }
        let mut vmcs = long_mode();
        vmcs.set(GUEST_CR3, 1);
        assert!(write_cr4(&mut vmcs, cr4::PAE | cr4::PCIDE, SUPPORTED, VmxOperation::Outside).is_err());
    }

    #[test]
    fn in_vmx_operation_pe_ne_pg_and_vmxe_cannot_be_cleared() {
        let mut vmcs = long_mode();
        follow_vmx_operation(&mut vmcs, VmxOperation::Inside);
        for bit in [cr0::PE, cr0::NE, cr0::PG] {
            assert!(write_cr0(&mut vmcs, LONG & !bit).is_err());
        }
        assert!(write_cr4(&mut vmcs, cr4::PAE, SUPPORTED, VmxOperation::Inside).is_err());
        follow_vmx_operation(&mut vmcs, VmxOperation::Outside);
        assert!(write_cr0(&mut vmcs, cr0::PE | cr0::ET).is_ok());
        assert!(write_cr4(&mut vmcs, cr4::PAE, SUPPORTED, VmxOperation::Outside).is_ok());
    }

    #[test]
    fn xcr0_takes_only_supported_and_consistent_bits() {
        assert_eq!(xsetbv(0, 7, 7), Ok(7));
        for (register, value, supported) in [(1, 7, 7), (0, 6, 7), (0, 5, 7), (0, 7, 3)] {
            assert_eq!(xsetbv(register, value, supported), Err(Exception::gp(0)));
        }
    }
}
