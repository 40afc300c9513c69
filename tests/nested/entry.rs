//! What an entry checks, and what becomes of one that fails. SDM Vol. 3, "VM Entries".

use crate::asm;
use crate::code::*;
use crate::l1::{guest, put_revision, set_up};
use crate::place::*;
use iced_x86::code_asm::*;
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::rflags;
use vmcs12::control::*;
use vmcs12::error::InstructionError::{self, *};
use vmcs12::exit::Reason;
use vmcs12::field::Field;
use vmcs12::field::table::*;

const VMCALL: u64 = Reason::Vmcall as u64;
const GUEST_STATE_FAILURE: u64 = 1 << 31 | Reason::EntryFailureGuestState as u64;
const MSR_LOADING_FAILURE: u64 = 1 << 31 | Reason::EntryFailureMsrLoading as u64;
const NOT_CANONICAL: u64 = 1 << 63;

/// What spoils one thing.
type Spoil = fn(&mut Code);

const fn failed(error: InstructionError) -> u64 {
    error.number() as u64
}

/// How VMLAUNCH ends after one thing has been spoilt.
fn launch(spoil: impl FnOnce(&mut Code)) -> Vec<u64> {
    guest(
        |l1| {
            spoil(l1);
            l1.try_enter(Entry::Launch);
        },
        |_| {},
    )
}

/// The exit of an entry that fails, after one thing has been spoilt: reason and qualification.
fn failing_entry(spoil: impl FnOnce(&mut Code)) -> Vec<u64> {
    guest(
        |l1| {
            spoil(l1);
            l1.enter().read(EXIT_REASON).read(EXIT_QUALIFICATION);
        },
        |_| {},
    )
}

#[test]
fn vmlaunch_needs_a_vmcs_that_is_clear_and_vmresume_one_that_is_launched() {
    let log = guest(
        |l1| {
            l1.try_enter(Entry::Resume).try_enter(Entry::Launch);
            l1.try_enter(Entry::Launch).try_enter(Entry::Resume);
        },
        |_| {},
    );
    assert_eq!(log, [failed(VmresumeNonLaunched), ENTERED, failed(VmlaunchNonClear), ENTERED]);
}

#[test]
fn vmclear_makes_the_launch_state_clear_and_keeps_the_fields_in_the_region() {
    let log = guest(
        |l1| {
            l1.enter().write(TSC_OFFSET, 0x1234_5678).vmclear(VMCS).vmptrld(VMCS);
            l1.try_enter(Entry::Resume).read(TSC_OFFSET).read(EXIT_REASON).try_enter(Entry::Launch);
        },
        |_| {},
    );
    assert_eq!(log, [failed(VmresumeNonLaunched), 0x1234_5678, VMCALL, ENTERED]);
}

#[test]
fn each_vmcs_has_its_own_launch_state_and_fields() {
    let log = guest(
        |l1| {
            put_revision(l1, OTHER_VMCS);
            l1.vmclear(OTHER_VMCS).vmptrld(OTHER_VMCS);
            set_up(l1);
            l1.write(GUEST_RIP, CODE_L2 + 1).enter().read(GUEST_RIP);
            l1.vmptrld(VMCS).launch_next().enter().read(GUEST_RIP);
            l1.vmptrld(OTHER_VMCS).read(GUEST_RIP).try_enter(Entry::Resume);
        },
        |l2| asm!(l2; nop(); nop()),
    );
    assert_eq!(log, [CODE_L2 + 2, CODE_L2 + 2, CODE_L2 + 2, ENTERED]);
}

#[test]
fn vmptrld_of_another_vmcs_writes_the_current_one_back() {
    let log = guest(
        |l1| {
            put_revision(l1, OTHER_VMCS);
            l1.vmclear(OTHER_VMCS);
            l1.write(TSC_OFFSET, 1).vmptrld(OTHER_VMCS).write(TSC_OFFSET, 2);
            l1.vmptrld(VMCS).read(TSC_OFFSET).vmptrld(OTHER_VMCS).read(TSC_OFFSET);
        },
        |_| {},
    );
    assert_eq!(log, [1, 2]);
}

#[test]
fn an_entry_while_events_are_blocked_by_mov_ss_fails() {
    let log = guest(
        |l1| {
            asm!(l1; mov(eax, ss); mov(ss, eax); vmlaunch());
            l1.outcome().try_enter(Entry::Launch);
        },
        |_| {},
    );
    assert_eq!(log, [failed(EntryBlockedByMovSs), ENTERED]);
}

#[test]
fn a_control_that_must_be_1_and_is_0_or_must_be_0_and_is_1_fails_the_entry() {
    let words = [
        PIN_BASED_VM_EXECUTION_CONTROLS,
        PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
        PRIMARY_VM_EXIT_CONTROLS,
        VM_ENTRY_CONTROLS,
    ];
    for word in words {
        assert_eq!(
            launch(|l1| l1.write(word, 0).done()),
            [failed(EntryInvalidControls)],
            "{}",
            word.row().name
        );
        let all = u64::from(u32::MAX);
        assert_eq!(
            launch(|l1| l1.write(word, all).done()),
            [failed(EntryInvalidControls)],
            "{}",
            word.row().name
        );
    }
    let posted = launch(|l1| l1.set(PROCESS_POSTED_INTERRUPTS).done());
    assert_eq!(posted, [failed(EntryInvalidControls)], "it is not offered");
}

#[test]
fn controls_that_need_others_fail_the_entry_without_them() {
    let dependents = [
        (VIRTUAL_NMIS, "NMI exiting"),
        (NMI_WINDOW_EXITING, "virtual NMIs"),
        (SAVE_VMX_PREEMPTION_TIMER_VALUE, "the timer"),
    ];
    for (control, needed) in dependents {
        let log = launch(|l1| l1.set(control).done());
        assert_eq!(log, [failed(EntryInvalidControls)], "{} without {needed}", control.name());
    }
    let log = launch(|l1| l1.clear(ENABLE_EPT).set(UNRESTRICTED_GUEST).done());
    assert_eq!(log, [failed(EntryInvalidControls)], "unrestricted guest without EPT");
}

#[test]
fn control_fields_that_are_out_of_range_fail_the_entry() {
    #[rustfmt::skip]
    let spoils: [(&str, Spoil); 9] = [
        ("five CR3 targets",          |l1| l1.write(CR3_TARGET_COUNT, 5).done()),
        ("VPID 0",                    |l1| l1.set(ENABLE_VPID).write(VPID, 0).done()),
        ("an EPTP of type WC",        |l1| l1.write(EPTP, EPT_PML4 | 1 | 3 << 3).done()),
        ("an EPTP with 3 levels",     |l1| l1.write(EPTP, EPT_PML4 | 6 | 2 << 3).done()),
        ("an EPTP beyond the width",  |l1| l1.write(EPTP, 1 << 51 | 6 | 3 << 3).done()),
        ("I/O bitmap A misaligned",   |l1| l1.set(USE_IO_BITMAPS).write(ADDRESS_OF_IO_BITMAP_A, 1).done()),
        ("MSR bitmaps misaligned",    |l1| l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, 8).done()),
        ("an MSR list misaligned",    |l1| l1.write(VM_ENTRY_MSR_LOAD_COUNT, 1).write(VM_ENTRY_MSR_LOAD_ADDRESS, 8).done()),
        ("an event of reserved type", |l1| l1.write(INJECTED_EVENT_IDENTIFICATION, 1 << 31 | 1 << 8).done()),
    ];
    for (spoilt, spoil) in spoils {
        assert_eq!(launch(spoil), [failed(EntryInvalidControls)], "{spoilt}");
    }
}

#[test]
fn a_bad_host_state_fails_the_entry() {
    #[rustfmt::skip]
    let spoils: [(Field<u64>, u64); 6] = [
        (HOST_CR0,                0),
        (HOST_CR3,                1 << 51),
        (HOST_CR4,                cr4::VMXE),
        (HOST_FS_BASE,            NOT_CANONICAL),
        (HOST_GDTR_BASE,          NOT_CANONICAL),
        (HOST_IA32_SYSENTER_EIP,  NOT_CANONICAL),
    ];
    for (field, value) in spoils {
        let log = launch(|l1| l1.write(field, value).done());
        assert_eq!(log, [failed(EntryInvalidHostState)], "{}", field.row().name);
    }
    for field in [HOST_CS_SELECTOR, HOST_TR_SELECTOR] {
        for selector in [0, 0x0b, 0x0c] {
            let log = launch(|l1| l1.write(field, selector).done());
            assert_eq!(log, [failed(EntryInvalidHostState)], "{} {selector:#x}", field.row().name);
        }
    }
    let log = launch(|l1| l1.clear(HOST_ADDRESS_SPACE_SIZE).done());
    assert_eq!(log, [failed(EntryInvalidHostState)], "a 64-bit host without its control");
}

#[test]
fn a_bad_guest_state_is_an_exit_with_reason_33_and_bit_31() {
    #[rustfmt::skip]
    let spoils: [(Field<u64>, u64); 8] = [
        (GUEST_CR0,       cr0::PE | cr0::PG),
        (GUEST_CR4,       cr4::PAE),
        (GUEST_CR3,       1 << 51),
        (GUEST_RFLAGS,    0),
        (GUEST_RFLAGS,    rflags::FIXED | rflags::VM),
        (GUEST_RIP,       NOT_CANONICAL),
        (GUEST_TR_BASE,   NOT_CANONICAL),
        (GUEST_DR7,       1 << 32 | 0x400),
    ];
    for (field, value) in spoils {
        let log = failing_entry(|l1| {
            if field.slot() == GUEST_DR7.slot() {
                l1.set(LOAD_DEBUG_CONTROLS);
            }
            l1.write(field, value);
        });
        assert_eq!(log, [GUEST_STATE_FAILURE, 0], "{} {value:#x}", field.row().name);
    }
}

#[test]
fn a_bad_guest_segment_is_an_exit_with_reason_33() {
    #[rustfmt::skip]
    let spoils: [(&str, Spoil); 6] = [
        ("CS is not code",            |l1| l1.write(GUEST_CS_ACCESS_RIGHTS, 0xa093).done()),
        ("CS has L and D",            |l1| l1.write(GUEST_CS_ACCESS_RIGHTS, 0xe09b).done()),
        ("TR is not busy",            |l1| l1.write(GUEST_TR_ACCESS_RIGHTS, 0x89).done()),
        ("TR is unusable",            |l1| l1.write(GUEST_TR_ACCESS_RIGHTS, 0x1_0000).done()),
        ("RPL of SS is not CS's",     |l1| l1.write(GUEST_SS_SELECTOR, 0x13).done()),
        ("G disagrees with limit",    |l1| l1.write(GUEST_DS_ACCESS_RIGHTS, 0x4093).done()),
    ];
    for (spoilt, spoil) in spoils {
        assert_eq!(failing_entry(spoil), [GUEST_STATE_FAILURE, 0], "{spoilt}");
    }
}

#[test]
fn a_bad_non_register_state_is_an_exit_with_reason_33() {
    #[rustfmt::skip]
    let spoils: [(&str, u64, Spoil); 6] = [
        ("activity state 4",             0, |l1| l1.write(GUEST_ACTIVITY_STATE, 4).done()),
        ("STI blocking with IF 0",       0, |l1| l1.write(GUEST_INTERRUPTIBILITY_STATE, 1).done()),
        ("STI and MOV SS blocking",      0, |l1| l1.write(GUEST_RFLAGS, rflags::FIXED | rflags::IF)
                                                  .write(GUEST_INTERRUPTIBILITY_STATE, 3).done()),
        ("HLT with MOV SS blocking",     0, |l1| l1.write(GUEST_ACTIVITY_STATE, 1)
                                                  .write(GUEST_INTERRUPTIBILITY_STATE, 2).done()),
        ("an interrupt with IF 0",       0, |l1| l1.write(INJECTED_EVENT_IDENTIFICATION, 1 << 31 | 0x40).done()),
        ("a link pointer to no VMCS",    4, |l1| l1.write(VMCS_LINK_POINTER, SCRATCH).done()),
    ];
    for (spoilt, qualification, spoil) in spoils {
        assert_eq!(failing_entry(spoil), [GUEST_STATE_FAILURE, qualification], "{spoilt}");
    }
}

#[test]
fn a_failed_entry_loads_the_host_state_and_leaves_the_launch_state_clear() {
    const FS_BASE: u32 = 0xc000_0100;
    let log = guest(
        |l1| {
            l1.write(GUEST_RFLAGS, 0).write(HOST_FS_BASE, 0x1234_5000);
            l1.enter();
            l1.rdmsr(FS_BASE).log_rax();
            l1.write(GUEST_RFLAGS, rflags::FIXED).try_enter(Entry::Resume);
        },
        |_| {},
    );
    assert_eq!(log, [0x1234_5000, failed(VmresumeNonLaunched)]);
}

#[test]
fn a_failed_entry_records_reason_and_qualification_and_nothing_else() {
    let log = guest(
        |l1| {
            l1.enter().read(VM_EXIT_INSTRUCTION_LENGTH).read(GUEST_RIP);
            l1.write(GUEST_RFLAGS, 0).enter();
            l1.read(EXIT_REASON).read(VM_EXIT_INSTRUCTION_LENGTH).read(GUEST_RIP).read(GUEST_RFLAGS);
        },
        |_| {},
    );
    assert_eq!(log, [3, CODE_L2, GUEST_STATE_FAILURE, 3, CODE_L2, 0]);
}

/// Writes an entry of an MSR list.
fn list(l1: &mut Code, entry: u64, index: u32, value: u64) {
    l1.store(MSR_LIST + 16 * entry, index.into()).store(MSR_LIST + 16 * entry + 8, value);
}

#[test]
fn an_msr_that_cannot_be_loaded_is_an_exit_with_reason_34_and_its_place_in_the_list() {
    const FS_BASE: u32 = 0xc000_0100;
    for bad in [(FS_BASE, 0), (msr::LSTAR, NOT_CANONICAL), (0x1fff, 0), (0x802, 0)] {
        let log = failing_entry(|l1| {
            list(l1, 0, msr::LSTAR, 0x1000);
            list(l1, 1, bad.0, bad.1);
            l1.write(VM_ENTRY_MSR_LOAD_ADDRESS, MSR_LIST).write(VM_ENTRY_MSR_LOAD_COUNT, 2);
        });
        assert_eq!(log, [MSR_LOADING_FAILURE, 2], "{bad:x?}");
    }
}

#[test]
fn msr_lists_are_loaded_at_entry_and_stored_and_loaded_at_exit() {
    let log = guest(
        |l1| {
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            list(l1, 0, msr::LSTAR, 0x1111);
            list(l1, 1, msr::LSTAR, 0);
            list(l1, 2, msr::LSTAR, 0x3333);
            l1.write(VM_ENTRY_MSR_LOAD_ADDRESS, MSR_LIST).write(VM_ENTRY_MSR_LOAD_COUNT, 1);
            l1.write(VM_EXIT_MSR_STORE_ADDRESS, MSR_LIST + 16).write(VM_EXIT_MSR_STORE_COUNT, 1);
            l1.write(VM_EXIT_MSR_LOAD_ADDRESS, MSR_LIST + 32).write(VM_EXIT_MSR_LOAD_COUNT, 1);
            l1.enter().log_memory(MSR_LIST + 24);
            l1.rdmsr(msr::LSTAR).log_rax();
        },
        |l2| {
            l2.rdmsr(msr::LSTAR).log_rax();
            l2.wrmsr(msr::LSTAR, 0x2222);
        },
    );
    assert_eq!(log, [0x1111, 0x2222, 0x3333]);
}

#[test]
fn an_l2_without_ept_has_l1s_physical_addresses() {
    let log = guest(
        |l1| {
            l1.store(SCRATCH, 0x5678).clear(ENABLE_EPT).enter().read(EXIT_REASON);
            l1.log_memory(SCRATCH + 8);
        },
        |l2| {
            l2.log_memory(SCRATCH);
            l2.store(SCRATCH + 8, 0x9abc);
        },
    );
    assert_eq!(log, [0x5678, VMCALL, 0x9abc]);
}

#[test]
fn an_unrestricted_guest_runs_in_real_mode() {
    const REAL_CODE: u64 = 0x9b;
    const REAL_DATA: u64 = 0x93;
    let log = guest(
        |l1| {
            l1.set(UNRESTRICTED_GUEST).clear(IA_32E_MODE_GUEST);
            l1.write(GUEST_CR0, cr0::ET | cr0::NE).write(GUEST_CR4, cr4::VMXE);
            l1.write(GUEST_CS_BASE, CODE_L2)
                .write(GUEST_CS_LIMIT, 0xffff)
                .write(GUEST_CS_ACCESS_RIGHTS, REAL_CODE);
            let data = [
                (GUEST_ES_LIMIT, GUEST_ES_ACCESS_RIGHTS),
                (GUEST_SS_LIMIT, GUEST_SS_ACCESS_RIGHTS),
                (GUEST_DS_LIMIT, GUEST_DS_ACCESS_RIGHTS),
                (GUEST_FS_LIMIT, GUEST_FS_ACCESS_RIGHTS),
                (GUEST_GS_LIMIT, GUEST_GS_ACCESS_RIGHTS),
            ];
            for (limit, rights) in data {
                l1.write(limit, 0xffff).write(rights, REAL_DATA);
            }
            l1.write(GUEST_RIP, 0).enter();
            asm!(l1; movzx(eax, bx));
            l1.log_rax().read(EXIT_REASON).read(GUEST_RIP).read(GUEST_CR0);
        },
        // MOV BX, 1234H; INC BX; CPUID
        |l2| l2.asm.db(&[0xbb, 0x34, 0x12, 0x43, 0x0f, 0xa2]).expect("bytes"),
    );
    assert_eq!(log, [0x1235, Reason::Cpuid as u64, 4, cr0::ET | cr0::NE]);
}

#[test]
fn without_unrestricted_guest_real_mode_fails_the_entry() {
    let log = failing_entry(|l1| l1.clear(IA_32E_MODE_GUEST).write(GUEST_CR0, cr0::ET | cr0::NE).done());
    assert_eq!(log, [GUEST_STATE_FAILURE, 0]);
}

#[test]
fn page_directory_pointers_that_are_not_valid_are_an_exit_with_reason_33_and_qualification_2() {
    const FLAT_CODE_32: u64 = 0xc09b;
    let pae = |pointer: u64| {
        guest(
            |l1| {
                l1.clear(IA_32E_MODE_GUEST).write(GUEST_CS_ACCESS_RIGHTS, FLAT_CODE_32);
                l1.write(GUEST_PDPTE0, pointer).enter().read(EXIT_REASON).read(EXIT_QUALIFICATION);
            },
            |_| {},
        )
    };
    const PRESENT: u64 = 1;
    const DIRECTORY: u64 = PML4 + 0x2000;
    assert_eq!(pae(DIRECTORY | PRESENT), [VMCALL, 0]);
    assert_eq!(pae(DIRECTORY | PRESENT | 2), [GUEST_STATE_FAILURE, 2]);
}
