//! VMX instructions and how they end. SDM Vol. 3, "VMX Instruction Reference".

use crate::asm;
use crate::code::*;
use crate::l1::{self, EPTP_VALUE, guest, outside, put_revision, root};
use crate::place::*;
use iced_x86::code_asm::*;
use vmcs12::arch::cr::cr4;
use vmcs12::error::InstructionError::{self, *};
use vmcs12::field::table::*;

/// An address with bits beyond the physical-address width.
const BEYOND_WIDTH: u64 = 1 << 51;

const fn failed(error: InstructionError) -> u64 {
    error.number() as u64
}

#[test]
fn vmx_instructions_other_than_vmxon_are_undefined_outside_vmx_operation() {
    let log = outside(|l1| {
        l1.catch(|l1| asm!(l1; vmxoff()));
        l1.catch(|l1| asm!(l1; vmlaunch()));
        l1.catch(|l1| asm!(l1; vmresume()));
        l1.catch(|l1| asm!(l1; vmcall()));
        l1.catch(|l1| asm!(l1; vmread(rax, rcx)));
        l1.catch(|l1| asm!(l1; vmwrite(rcx, rax)));
        l1.catch(|l1| asm!(l1; vmptrst(qword_ptr(OPERAND as u32))));
        l1.catch(|l1| l1.vmptrld(VMCS).done());
        l1.catch(|l1| l1.vmclear(VMCS).done());
        l1.catch(|l1| l1.invept(1, EPTP_VALUE).done());
        l1.catch(|l1| l1.invvpid(2, 1, 0).done());
    });
    assert_eq!(log, [UD; 11]);
}

#[test]
fn vmxon_is_undefined_while_cr4_vmxe_is_clear() {
    let log = outside(|l1| {
        asm!(l1; mov(rax, cr4); and(rax, !(cr4::VMXE as i32)); mov(cr4, rax));
        l1.catch(|l1| l1.vmxon(VMXON_REGION).done());
    });
    assert_eq!(log, [UD]);
}

#[test]
fn vmxon_at_cpl_3_is_a_general_protection_fault() {
    let log = outside(|l1| l1.catch_in_user_mode(|l1| l1.vmxon(VMXON_REGION).done()).done());
    assert_eq!(log, [GP]);
}

#[test]
fn vmxon_enters_vmx_operation_and_vmxoff_leaves_it() {
    let log = outside(|l1| {
        put_revision(l1, VMXON_REGION);
        l1.vmxon(VMXON_REGION).outcome();
        asm!(l1; vmxoff());
        l1.outcome();
        l1.catch(|l1| asm!(l1; vmxoff()));
        l1.vmxon(VMXON_REGION).outcome();
    });
    assert_eq!(log, [SUCCEEDED, SUCCEEDED, UD, SUCCEEDED]);
}

#[test]
fn vmxon_with_a_misaligned_or_too_large_pointer_is_vmfail_invalid() {
    let log = outside(|l1| {
        put_revision(l1, VMXON_REGION);
        l1.vmxon(VMXON_REGION + 8).outcome();
        l1.vmxon(BEYOND_WIDTH).outcome();
        l1.catch(|l1| asm!(l1; vmxoff()));
    });
    assert_eq!(log, [FAILED_INVALID, FAILED_INVALID, UD]);
}

#[test]
fn vmxon_with_a_wrong_revision_identifier_is_vmfail_invalid() {
    let log = outside(|l1| {
        put_revision(l1, VMXON_REGION);
        asm!(l1; xor(dword_ptr(VMXON_REGION as u32), 0x10));
        l1.vmxon(VMXON_REGION).outcome();
        asm!(l1; xor(dword_ptr(VMXON_REGION as u32), 0x10); or(byte_ptr(VMXON_REGION as u32 + 3), 0x80));
        l1.vmxon(VMXON_REGION).outcome();
    });
    assert_eq!(log, [FAILED_INVALID; 2]);
}

#[test]
fn vmxon_in_vmx_root_operation_fails() {
    let log = guest(|l1| l1.vmxon(OTHER_VMCS).outcome().done(), |_| {});
    assert_eq!(log, [failed(VmxonInRoot)]);
    let without_current = root(|l1| l1.vmxon(OTHER_VMCS).outcome().done());
    assert_eq!(without_current, [FAILED_INVALID]);
}

#[test]
fn cr4_vmxe_cannot_be_cleared_in_vmx_operation() {
    let log = root(|l1| {
        l1.catch(|l1| asm!(l1; mov(rax, cr4); and(rax, !(cr4::VMXE as i32)); mov(cr4, rax)));
        asm!(l1; vmxoff());
        l1.catch(|l1| asm!(l1; mov(rax, cr4); and(rax, !(cr4::VMXE as i32)); mov(cr4, rax)));
    });
    assert_eq!(log, [GP, NO_EXCEPTION]);
}

#[test]
fn cr0_pe_pg_and_ne_cannot_be_cleared_in_vmx_operation() {
    let log = root(|l1| {
        for bit in [0u32, 5, 31] {
            l1.catch(|l1| asm!(l1; mov(rax, cr0); btr(rax, bit); mov(cr0, rax)));
        }
    });
    assert_eq!(log, [GP; 3]);
}

#[test]
fn vmx_instructions_at_cpl_3_are_general_protection_faults() {
    let log = guest(
        |l1| {
            l1.catch_in_user_mode(|l1| asm!(l1; vmxoff()));
            l1.catch_in_user_mode(|l1| asm!(l1; vmlaunch()));
            l1.catch_in_user_mode(|l1| asm!(l1; vmread(rax, rcx)));
            l1.catch_in_user_mode(|l1| asm!(l1; vmwrite(rcx, rax)));
            l1.catch_in_user_mode(|l1| l1.vmptrld(VMCS).done());
            l1.catch_in_user_mode(|l1| l1.vmclear(VMCS).done());
            l1.catch_in_user_mode(|l1| l1.invept(2, 0).done());
            l1.catch_in_user_mode(|l1| asm!(l1; vmcall()));
        },
        |_| {},
    );
    assert_eq!(log, [GP; 8]);
}

#[test]
fn vmclear_checks_its_pointer() {
    let log = guest(
        |l1| {
            l1.vmclear(OTHER_VMCS + 1).outcome();
            l1.vmclear(BEYOND_WIDTH).outcome();
            l1.vmclear(VMXON_REGION).outcome();
            l1.vmclear(OTHER_VMCS).outcome();
        },
        |_| {},
    );
    let expected = [
        failed(VmclearInvalidAddress),
        failed(VmclearInvalidAddress),
        failed(VmclearVmxonPointer),
        SUCCEEDED,
    ];
    assert_eq!(log, expected);
}

#[test]
fn vmptrld_checks_its_pointer_and_the_revision() {
    let log = guest(
        |l1| {
            l1.vmptrld(OTHER_VMCS + 1).outcome();
            l1.vmptrld(BEYOND_WIDTH).outcome();
            l1.vmptrld(VMXON_REGION).outcome();
            l1.store(OTHER_VMCS, 0x1234_5678).vmptrld(OTHER_VMCS).outcome();
            put_revision(l1, OTHER_VMCS);
            l1.vmptrld(OTHER_VMCS).outcome();
        },
        |_| {},
    );
    let expected = [
        failed(VmptrldInvalidAddress),
        failed(VmptrldInvalidAddress),
        failed(VmptrldVmxonPointer),
        failed(VmptrldWrongRevision),
        SUCCEEDED,
    ];
    assert_eq!(log, expected);
}

#[test]
fn a_shadow_vmcs_needs_vmcs_shadowing() {
    let log = guest(
        |l1| {
            put_revision(l1, OTHER_VMCS);
            asm!(l1; or(byte_ptr(OTHER_VMCS as u32 + 3), 0x80));
            l1.vmptrld(OTHER_VMCS).outcome();
        },
        |_| {},
    );
    assert_eq!(log, [failed(VmptrldWrongRevision)], "the control is not offered");
}

#[test]
fn vmptrst_stores_the_current_vmcs_pointer() {
    let store = |l1: &mut Code| {
        asm!(l1; vmptrst(qword_ptr(OPERAND as u32)));
        l1.outcome().log_memory(OPERAND);
    };
    assert_eq!(guest(store, |_| {}), [SUCCEEDED, VMCS]);
    assert_eq!(root(store), [SUCCEEDED, u64::MAX], "there is none");
}

#[test]
fn vmclear_of_the_current_vmcs_leaves_none_current() {
    let log = guest(
        |l1| {
            l1.vmclear(OTHER_VMCS);
            asm!(l1; vmptrst(qword_ptr(OPERAND as u32)));
            l1.log_memory(OPERAND);
            l1.vmclear(VMCS);
            asm!(l1; vmptrst(qword_ptr(OPERAND as u32)));
            l1.log_memory(OPERAND);
        },
        |_| {},
    );
    assert_eq!(log, [VMCS, u64::MAX]);
}

#[test]
fn without_a_current_vmcs_vmread_vmwrite_and_entries_are_vmfail_invalid() {
    let log = root(|l1| {
        l1.read_rax(GUEST_RIP).outcome();
        l1.write(GUEST_RIP, 1).outcome();
        asm!(l1; vmlaunch());
        l1.outcome();
        asm!(l1; vmresume());
        l1.outcome();
    });
    assert_eq!(log, [FAILED_INVALID; 4]);
}

#[test]
fn vmread_returns_what_vmwrite_wrote_cut_to_the_width_of_the_field() {
    let log = guest(
        |l1| {
            l1.write(GUEST_RIP, 0x1122_3344_5566_7788).read(GUEST_RIP);
            l1.write(TSC_OFFSET, 0x1122_3344_5566_7788).read(TSC_OFFSET);
            l1.write(EXCEPTION_BITMAP, 0x1122_3344_5566_7788).read(EXCEPTION_BITMAP);
            l1.write(GUEST_ES_SELECTOR, 0x1122_3344_5566_7788).read(GUEST_ES_SELECTOR);
        },
        |_| {},
    );
    assert_eq!(log, [0x1122_3344_5566_7788, 0x1122_3344_5566_7788, 0x5566_7788, 0x7788]);
}

#[test]
fn the_high_half_of_a_64_bit_field_has_an_encoding_of_its_own() {
    let high = TSC_OFFSET.row().encoding | 1;
    let log = guest(
        |l1| {
            l1.write(TSC_OFFSET, 0x1122_3344_5566_7788);
            asm!(l1; mov(ecx, high); vmread(rax, rcx));
            l1.log_rax();
            asm!(l1; mov(ecx, high); mov(eax, 0x99u32); vmwrite(rcx, rax));
            l1.read(TSC_OFFSET);
        },
        |_| {},
    );
    assert_eq!(log, [0x1122_3344, 0x99_5566_7788]);
}

#[test]
fn vmread_and_vmwrite_take_memory_operands() {
    let log = guest(
        |l1| {
            l1.store(SCRATCH, 0x1234_5000);
            asm!(l1; mov(ecx, GUEST_RSP.row().encoding); vmwrite(rcx, qword_ptr(SCRATCH as u32)));
            l1.outcome();
            asm!(l1; mov(ecx, GUEST_RSP.row().encoding); vmread(qword_ptr(SCRATCH as u32 + 8), rcx));
            l1.outcome().log_memory(SCRATCH + 8);
            l1.catch(
                |l1| asm!(l1; mov(ecx, GUEST_RSP.row().encoding); vmread(qword_ptr(NOT_MAPPED as u32), rcx)),
            );
        },
        |_| {},
    );
    const WRITE: u32 = 2;
    assert_eq!(log, [SUCCEEDED, SUCCEEDED, 0x1234_5000, exception(14, WRITE)]);
}

#[test]
fn vmread_and_vmwrite_of_a_field_that_does_not_exist_fail() {
    const NO_FIELD: u32 = 0x6c3e;
    let log = guest(
        |l1| {
            asm!(l1; mov(ecx, NO_FIELD); vmread(rax, rcx));
            l1.outcome();
            asm!(l1; mov(ecx, NO_FIELD); vmwrite(rcx, rax));
            l1.outcome();
            asm!(l1; mov(rcx, 1u64 << 32); vmread(rax, rcx));
            l1.outcome();
        },
        |_| {},
    );
    assert_eq!(log, [failed(UnsupportedField); 3]);
}

#[test]
fn vmwrite_to_exit_information_needs_the_capability() {
    let write = |l1: &mut Code| l1.write(EXIT_REASON, 1).outcome().done();
    assert_eq!(guest(write, |_| {}), [SUCCEEDED]);
    assert_eq!(l1::guest_on("sandy_bridge", write, |_| {}), [failed(ReadOnlyField)]);
}

#[test]
fn a_vmx_instruction_clears_the_status_flags_unless_it_fails() {
    const STATUS: i32 = 0x8d5;
    const CF: u64 = 1;
    let log = guest(
        |l1| {
            for field in [GUEST_RIP.row().encoding, 0x6c3e] {
                asm!(l1; mov(ecx, field); push(STATUS | 2); popfq(); vmread(rax, rcx); pushfq(); pop(rax);
                    and(eax, STATUS));
                l1.log_rax();
            }
            l1.vmclear(VMCS);
            asm!(l1; push(STATUS | 2); popfq(); vmread(rax, rcx); pushfq(); pop(rax); and(eax, STATUS));
            l1.log_rax();
        },
        |_| {},
    );
    const ZF: u64 = 1 << 6;
    assert_eq!(log, [0, ZF, CF]);
}

#[test]
fn invept_knows_two_types() {
    let log = guest(
        |l1| {
            for kind in 0..4 {
                l1.invept(kind, EPTP_VALUE).outcome();
            }
            l1.invept(1, EPTP_VALUE | 0x38).outcome();
        },
        |_| {},
    );
    let bad = failed(InvalidInvalidationOperand);
    assert_eq!(log, [bad, SUCCEEDED, SUCCEEDED, bad, bad]);
}

#[test]
fn invvpid_knows_four_types() {
    let log = guest(
        |l1| {
            for kind in 0..5 {
                l1.invvpid(kind, 1, 0x1000).outcome();
            }
        },
        |_| {},
    );
    assert_eq!(log, [SUCCEEDED, SUCCEEDED, SUCCEEDED, SUCCEEDED, failed(InvalidInvalidationOperand)]);
}

#[test]
fn invvpid_refuses_vpid_0_reserved_bits_and_addresses_that_are_not_canonical() {
    let log = guest(
        |l1| {
            l1.invvpid(1, 0, 0).outcome();
            l1.invvpid(3, 0, 0).outcome();
            l1.invvpid(1, 0x1_0001, 0).outcome();
            l1.invvpid(0, 1, 1 << 63).outcome();
        },
        |_| {},
    );
    assert_eq!(log, [failed(InvalidInvalidationOperand); 4]);
}

#[test]
fn vmcall_in_vmx_root_operation_fails() {
    let log = guest(
        |l1| {
            asm!(l1; vmcall());
            l1.outcome();
        },
        |_| {},
    );
    assert_eq!(log, [failed(VmcallInRoot)]);
}

#[test]
fn a_capability_msr_cannot_be_written() {
    let log = outside(|l1| {
        for index in 0x480..0x491 {
            l1.rdmsr(index);
            l1.catch(|l1| asm!(l1; mov(ecx, index); wrmsr()));
        }
    });
    assert_eq!(log, [GP; 17]);
}

#[test]
fn the_true_controls_say_which_defaults_may_be_0() {
    let log = outside(|l1| {
        l1.rdmsr(0x482).log_rax().rdmsr(msr::VMX_TRUE_PRIMARY).log_rax();
    });
    const CR3_EXITING: u64 = 0x1_8000;
    assert_eq!(log[0] & CR3_EXITING, CR3_EXITING, "must be 1");
    assert_eq!(log[1] & CR3_EXITING, 0, "may be 0");
    assert_eq!(log[0] >> 32, log[1] >> 32);
}

#[test]
fn ia32_feature_control_is_locked_until_reset() {
    let log = outside(|l1| {
        l1.rdmsr(msr::FEATURE_CONTROL).log_rax();
        l1.catch(|l1| l1.wrmsr(msr::FEATURE_CONTROL, 0).done());
    });
    assert_eq!((log[0] & 5, log[1]), (5, GP));
}
