//! What entries load, and what exits save and load. SDM Vol. 3, "Loading Guest State", "Saving Guest State",
//! "Loading Host State".

use crate::asm;
use crate::code::*;
use crate::l1::guest;
use crate::place::*;
use iced_x86::code_asm::*;
use vmcs12::arch::cr::cr0;
use vmcs12::arch::{efer, rflags};
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::table::*;

const VMCALL: u64 = Reason::Vmcall as u64;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const PAT: u32 = 0x277;

#[test]
fn an_exit_clears_rflags_and_sets_dr7_to_400h() {
    const RF_AND_STATUS: i32 = 0x8d5;
    let log = guest(
        |l1| {
            l1.enter();
            asm!(l1; pushfq(); pop(rax));
            l1.log_rax();
            asm!(l1; mov(rax, dr7));
            l1.log_rax();
        },
        |l2| {
            asm!(l2; mov(eax, 0x455u32); mov(dr7, rax); push(RF_AND_STATUS | 2 | rflags::IF as i32); popfq(); vmcall());
        },
    );
    assert_eq!(log, [rflags::FIXED, 0x400]);
}

#[test]
fn an_exit_loads_the_hosts_selectors_and_null_for_ldtr() {
    let log = guest(
        |l1| {
            l1.write(HOST_ES_SELECTOR, 0).write(HOST_FS_SELECTOR, 0).enter();
            for register in [es, cs, ss, ds, fs, gs] {
                asm!(l1; mov(eax, register));
                l1.log_rax();
            }
            asm!(l1; str(eax));
            l1.log_rax();
            asm!(l1; sldt(eax));
            l1.log_rax();
        },
        |_| {},
    );
    let (code, data, task) = (CODE_SELECTOR.into(), DATA_SELECTOR.into(), TASK_SELECTOR.into());
    assert_eq!(log, [0, code, data, data, 0, data, task, 0]);
}

#[test]
fn an_exit_loads_bases_and_system_registers_of_the_host() {
    let log = guest(
        |l1| {
            l1.write(HOST_FS_BASE, 0x1111_0000).write(HOST_GS_BASE, 0x2222_0000);
            l1.write(HOST_IA32_SYSENTER_CS, 0x33).write(HOST_IA32_SYSENTER_ESP, 0x4444);
            l1.write(HOST_IA32_SYSENTER_EIP, 0x5555).enter();
            for index in [FS_BASE, GS_BASE, msr::SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP] {
                l1.rdmsr(index).log_rax();
            }
        },
        |_| {},
    );
    assert_eq!(log, [0x1111_0000, 0x2222_0000, 0x33, 0x4444, 0x5555]);
}

#[test]
fn an_exit_loads_the_hosts_descriptor_tables_with_limit_ffffh() {
    let log = guest(
        |l1| {
            l1.enter();
            asm!(l1; sgdt(ptr(SCRATCH as u32)); sidt(ptr(SCRATCH as u32 + 16)));
            asm!(l1; movzx(eax, word_ptr(SCRATCH as u32)));
            l1.log_rax().log_memory(SCRATCH + 2);
            asm!(l1; movzx(eax, word_ptr(SCRATCH as u32 + 16)));
            l1.log_rax().log_memory(SCRATCH + 18);
        },
        |_| {},
    );
    assert_eq!(log, [0xffff, GDT, 0xffff, IDT_L1]);
}

#[test]
fn an_exit_loads_cr0_cr3_cr4_and_rsp_of_the_host() {
    let log = guest(
        |l1| {
            asm!(l1; mov(rbp, rsp); mov(rax, cr0); or(eax, cr0::AM as i32));
            l1.write_rax(HOST_CR0).enter();
            asm!(l1; mov(rax, rsp); sub(rax, rbp));
            l1.log_rax();
            asm!(l1; mov(rax, cr0); and(eax, cr0::AM as i32));
            l1.log_rax();
            asm!(l1; mov(rax, cr3));
            l1.log_rax();
        },
        |l2| asm!(l2; mov(esp, STACK_L2 as u32 - 8)),
    );
    assert_eq!(log, [0, cr0::AM, PML4]);
}

#[test]
fn an_exit_saves_rip_rsp_rflags_and_control_registers() {
    let log = guest(
        |l1| {
            l1.enter().read(GUEST_RSP).read(GUEST_RFLAGS).read(GUEST_CR0).read(GUEST_CR3);
        },
        |l2| {
            asm!(l2; mov(rax, cr0); or(eax, cr0::AM as i32); mov(cr0, rax); mov(esp, 0x7000u32); push(0x246); popfq());
        },
    );
    const INITIAL: u64 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    assert_eq!(log, [0x7000, 0x246, INITIAL | cr0::AM, PML4]);
}

#[test]
fn an_entry_loads_segments_and_an_exit_saves_them() {
    let log = guest(
        |l1| {
            l1.write(GUEST_GS_BASE, SCRATCH).store(SCRATCH + 8, 0x77).enter();
            l1.read(GUEST_FS_SELECTOR).read(GUEST_FS_ACCESS_RIGHTS).read(GUEST_GS_BASE);
        },
        |l2| {
            asm!(l2; mov(rax, qword_ptr(8u32).gs()));
            l2.log_rax();
            asm!(l2; mov(eax, i32::from(USER_DATA_SELECTOR)); mov(fs, eax));
        },
    );
    assert_eq!(log, [0x77, USER_DATA_SELECTOR.into(), 0xc0f3, SCRATCH]);
}

#[test]
fn debug_controls_are_loaded_and_saved_by_their_controls() {
    let log = guest(
        |l1| {
            l1.write(GUEST_DR7, 0x401).set(LOAD_DEBUG_CONTROLS).set(SAVE_DEBUG_CONTROLS);
            l1.enter().read(GUEST_DR7);
        },
        |l2| {
            asm!(l2; mov(rax, dr7));
            l2.log_rax();
            asm!(l2; mov(eax, 0x404u32); mov(dr7, rax));
        },
    );
    assert_eq!(log, [0x401, 0x404]);
}

#[test]
fn efer_is_loaded_and_saved_by_its_controls() {
    let log = guest(
        |l1| {
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            l1.set(LOAD_IA32_EFER_ON_ENTRY).set(SAVE_IA32_EFER).set(LOAD_IA32_EFER_ON_EXIT);
            l1.write(GUEST_IA32_EFER, efer::LMA | efer::LME | efer::NXE);
            l1.write(HOST_IA32_EFER, efer::LMA | efer::LME);
            l1.enter().read(GUEST_IA32_EFER);
            l1.rdmsr(msr::EFER).log_rax();
        },
        |l2| {
            l2.rdmsr(msr::EFER).log_rax();
            l2.wrmsr(msr::EFER, efer::LME | efer::SCE);
        },
    );
    let long = efer::LMA | efer::LME;
    assert_eq!(log, [long | efer::NXE, long | efer::SCE, long]);
}

#[test]
fn pat_is_loaded_and_saved_by_its_controls() {
    let log = guest(
        |l1| {
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            l1.set(LOAD_IA32_PAT_ON_ENTRY).set(SAVE_IA32_PAT).set(LOAD_IA32_PAT_ON_EXIT);
            l1.write(GUEST_IA32_PAT, 0x0606).write(HOST_IA32_PAT, 0x0404);
            l1.enter().read(GUEST_IA32_PAT);
            l1.rdmsr(PAT).log_rax();
        },
        |l2| {
            l2.rdmsr(PAT).log_rax();
            l2.wrmsr(PAT, 0x0505);
        },
    );
    assert_eq!(log, [0x0606, 0x0505, 0x0404]);
}

#[test]
fn an_msr_that_no_control_switches_is_shared_by_l1_and_l2() {
    let log = guest(
        |l1| {
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            l1.wrmsr(msr::LSTAR, 0x1234).enter();
            l1.rdmsr(msr::LSTAR).log_rax();
        },
        |l2| {
            l2.rdmsr(msr::LSTAR).log_rax();
            l2.wrmsr(msr::LSTAR, 0x5678);
        },
    );
    assert_eq!(log, [0x1234, 0x5678]);
}

#[test]
fn an_exit_saves_blocking_by_sti_and_by_mov_ss() {
    let log = guest(
        |l1| {
            l1.enter().read(GUEST_INTERRUPTIBILITY_STATE).skip();
            l1.write(GUEST_INTERRUPTIBILITY_STATE, 0).enter().read(GUEST_INTERRUPTIBILITY_STATE);
        },
        |l2| asm!(l2; sti(); vmcall(); cli(); mov(eax, ss); mov(ss, eax); vmcall()),
    );
    assert_eq!(log, [1, 2]);
}

#[test]
fn the_activity_state_after_an_exit_is_active() {
    let log = guest(
        |l1| {
            l1.set(HLT_EXITING).enter().read(GUEST_ACTIVITY_STATE).skip().enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; hlt()),
    );
    assert_eq!(log, [0, VMCALL]);
}

#[test]
fn ia_32e_mode_guest_is_the_guests_lma_after_an_exit() {
    let log = guest(|l1| l1.enter().read(VM_ENTRY_CONTROLS).done(), |_| {});
    assert_ne!(log[0] & IA_32E_MODE_GUEST.mask(), 0);
}
