//! Cached translations: what drops them, and what keeps them. SMAP, SMEP, protection keys.

mod guest;

use guest::{CODE, Guest, IDT, PML4, STACK};
use iced_x86::code_asm::*;
use vmcs12::addr::{Gva, Linear, LinearFault, Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::{Exception, vector};
use vmcs12::arch::segment::AccessRights;
use vmcs12::arch::{efer, rflags};
use vmcs12::control::*;
use vmcs12::cpu_state::gpr::*;
use vmcs12::exit::{Cause, Invalidation, Reason};
use vmcs12::field::table::*;

/// A 4-KiB page of its own: a PDPT entry, a page directory and a page table lead to it.
const PAGE: u64 = 0x80_0000_0000;
const TABLES: u64 = 0x5_0000;
const PTE: u64 = TABLES + 0x2000;
/// Two frames that it can be.
const FIRST: u64 = 0x40_0000;
const SECOND: u64 = 0x40_1000;
/// A second root that shares everything.
const OTHER_ROOT: u64 = 0x5_8000;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const GLOBAL: u64 = 1 << 8;
const KERNEL: u64 = P | RW;

fn with_page(flags: u64) -> Guest {
    let mut guest = Guest::new();
    let memory = &guest.memory;
    memory.write_u64(Pa(PML4 + 8), TABLES | P | RW | US);
    memory.write_u64(Pa(TABLES), (TABLES + 0x1000) | P | RW | US);
    memory.write_u64(Pa(TABLES + 0x1000), PTE | P | RW | US);
    memory.write_u64(Pa(PTE), FIRST | flags);
    for i in 0..2 {
        memory.write_u64(Pa(OTHER_ROOT + 8 * i), memory.read_u64(Pa(PML4 + 8 * i)));
    }
    memory.write_u64(Pa(FIRST), 1);
    memory.write_u64(Pa(SECOND), 2);
    guest.vmcs.current.set(EXCEPTION_BITMAP, 1 << vector::PF | 1 << vector::GP | 1 << vector::UD);
    guest
}

/// RBX before and RCX after the page has become the second frame and `flush` has run.
fn before_and_after(guest: &mut Guest, flush: impl FnOnce(&mut CodeAssembler)) -> (u64, u64) {
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.mov(rdi, PTE).unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
        a.xor(qword_ptr(rdi), (FIRST ^ SECOND) as i32).unwrap();
        flush(a);
        a.mov(rcx, qword_ptr(rsi)).unwrap();
        a.hlt().unwrap();
    });
    let exit = guest.run(1000);
    assert_eq!(exit.cause, Cause::Vm(Reason::Hlt), "{:x?}", guest.vmcs.current);
    (guest.reg(RBX), guest.reg(RCX))
}

fn reload_cr3(a: &mut CodeAssembler) {
    a.mov(rax, cr3).unwrap();
    a.mov(cr3, rax).unwrap();
}

#[test]
fn a_changed_entry_shows_only_after_an_invalidation() {
    assert_eq!(before_and_after(&mut with_page(KERNEL), |_| {}), (1, 1), "the translation is cached");
    let by_page = |a: &mut CodeAssembler| a.invlpg(byte_ptr(rsi)).unwrap();
    assert_eq!(before_and_after(&mut with_page(KERNEL), by_page), (1, 2));
    assert_eq!(before_and_after(&mut with_page(KERNEL | GLOBAL), by_page), (1, 2));
    assert_eq!(before_and_after(&mut with_page(KERNEL), reload_cr3), (1, 2));
}

#[test]
fn global_translations_survive_cr3_but_not_pge() {
    assert_eq!(before_and_after(&mut with_page(KERNEL | GLOBAL), reload_cr3), (1, 1));
    let toggle = |a: &mut CodeAssembler| {
        a.mov(rax, cr4).unwrap();
        a.xor(rax, cr4::PGE as i32).unwrap();
        a.mov(cr4, rax).unwrap();
        a.xor(rax, cr4::PGE as i32).unwrap();
        a.mov(cr4, rax).unwrap();
    };
    assert_eq!(before_and_after(&mut with_page(KERNEL | GLOBAL), toggle), (1, 2));
}

fn with_pcids(flags: u64) -> Guest {
    let mut guest = with_page(flags);
    let vmcs = &mut guest.vmcs.current;
    vmcs.set(GUEST_CR4, vmcs.get(GUEST_CR4) | cr4::PCIDE);
    guest
}

/// Loads CR3 with a root, a PCID and perhaps bit 63.
fn load_cr3(a: &mut CodeAssembler, value: u64) {
    a.mov(rax, value).unwrap();
    a.mov(cr3, rax).unwrap();
}

#[test]
fn pcids_keep_their_translations_apart_and_bit_63_keeps_them() {
    const KEEP: u64 = 1 << 63;
    let away_and_back = |back: u64| {
        move |a: &mut CodeAssembler| {
            load_cr3(a, OTHER_ROOT | 5);
            a.mov(rdx, qword_ptr(rsi)).unwrap();
            load_cr3(a, PML4 | back);
        }
    };
    let mut guest = with_pcids(KERNEL);
    assert_eq!(before_and_after(&mut guest, away_and_back(KEEP)), (1, 1));
    assert_eq!(guest.reg(RDX), 2, "another PCID walks for itself");
    assert_eq!(before_and_after(&mut with_pcids(KERNEL), away_and_back(0)), (1, 2));
}

/// INVPCID of a kind with this descriptor.
fn invpcid(a: &mut CodeAssembler, kind: u64, pcid: u64) {
    a.mov(rax, pcid).unwrap();
    a.mov(qword_ptr(rsp - 16), rax).unwrap();
    a.mov(qword_ptr(rsp - 8), rsi).unwrap();
    a.mov(eax, kind as u32).unwrap();
    a.invpcid(rax, xmmword_ptr(rsp - 16)).unwrap();
}

#[test]
fn invpcid_has_four_kinds() {
    let run = |flags: u64, kind: u64, pcid: u64| {
        let mut guest = with_pcids(flags);
        guest.vmcs.current.set_control(ACTIVATE_SECONDARY_CONTROLS, true);
        guest.vmcs.current.set_control(ENABLE_INVPCID, true);
        before_and_after(&mut guest, |a| invpcid(a, kind, pcid)).1
    };
    assert_eq!((run(KERNEL, 0, 0), run(KERNEL, 0, 7), run(KERNEL | GLOBAL, 0, 0)), (2, 1, 1));
    assert_eq!((run(KERNEL, 1, 0), run(KERNEL, 1, 7), run(KERNEL | GLOBAL, 1, 0)), (2, 1, 1));
    assert_eq!((run(KERNEL, 2, 7), run(KERNEL | GLOBAL, 2, 7)), (2, 2));
    assert_eq!((run(KERNEL, 3, 7), run(KERNEL | GLOBAL, 3, 7)), (2, 1));
}

#[test]
fn invpcid_without_its_control_is_undefined() {
    let mut guest = with_page(KERNEL);
    guest.load(|a| invpcid(a, 4, 0));
    assert_eq!(guest.run(100).cause, Cause::Vm(Reason::ExceptionOrNmi));
    let event = guest.vmcs.current.get(EXITING_EVENT_IDENTIFICATION);
    assert_eq!(event.get(vmcs12::arch::event::RecordedEvent::VECTOR), vector::UD);
}

#[test]
fn vpids_survive_exits_until_they_are_invalidated() {
    let mut guest = with_page(KERNEL | GLOBAL);
    guest.vmcs.current.set_control(ACTIVATE_SECONDARY_CONTROLS, true);
    guest.vmcs.current.set_control(ENABLE_VPID, true);
    guest.vmcs.current.set(VPID, 3);
    guest.load(|a| {
        let mut again = a.create_label();
        a.mov(rsi, PAGE).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
        a.cpuid().unwrap();
        a.jmp(again).unwrap();
    });
    let mut seen = Vec::new();
    for what in [
        None,
        None,
        Some(Invalidation::Vpid(4)),
        Some(Invalidation::VpidRetainGlobals(3)),
        Some(Invalidation::VpidAddress(3, Gva(PAGE))),
    ] {
        if let Some(what) = what {
            guest.cpu.invalidate(what);
        }
        assert_eq!(guest.run(100).cause, Cause::Vm(Reason::Cpuid));
        seen.push(guest.reg(RBX));
        guest.memory.write_u64(Pa(PTE), SECOND | KERNEL | GLOBAL);
        let next = guest.rip() + 2;
        guest.vmcs.current.set(GUEST_RIP, next);
    }
    assert_eq!(seen, [1, 1, 1, 1, 2]);
}

#[test]
fn without_a_vpid_an_entry_drops_everything() {
    let mut guest = with_page(KERNEL | GLOBAL);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
        a.cpuid().unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(guest.run(100).cause, Cause::Vm(Reason::Cpuid));
    guest.memory.write_u64(Pa(PTE), SECOND | KERNEL | GLOBAL);
    let next = guest.rip() + 2;
    guest.vmcs.current.set(GUEST_RIP, next);
    assert_eq!(guest.run(100).cause, Cause::Vm(Reason::Hlt));
    assert_eq!(guest.reg(RBX), 2);
}

/// The error code of the page fault that ends the run.
#[track_caller]
fn page_fault(guest: &mut Guest) -> (u32, u64) {
    let exit = guest.run(1000);
    assert_eq!(exit.cause, Cause::Vm(Reason::ExceptionOrNmi), "{:x?}", guest.vmcs.current);
    (guest.vmcs.current.get(EXITING_EVENT_ERROR_CODE), guest.vmcs.current.get(EXIT_QUALIFICATION))
}

fn set_cr4(guest: &mut Guest, bits: u64) {
    let vmcs = &mut guest.vmcs.current;
    vmcs.set(GUEST_CR4, vmcs.get(GUEST_CR4) | bits);
}

/// Makes the first GiB supervisor pages, so that only [`PAGE`] is a user page.
fn supervisor_identity(guest: &Guest) {
    guest.memory.write_u64(Pa(PML4), (PML4 + 0x1000) | KERNEL);
}

#[test]
fn smap_is_suspended_between_stac_and_clac() {
    let mut guest = with_page(KERNEL | US);
    supervisor_identity(&guest);
    set_cr4(&mut guest, cr4::SMAP);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.stac().unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
        a.mov(qword_ptr(rsi), 5).unwrap();
        a.clac().unwrap();
        a.mov(rcx, qword_ptr(rsi)).unwrap();
    });
    assert_eq!(page_fault(&mut guest), (1, PAGE));
    assert_eq!((guest.reg(RBX), guest.memory.read_u64(Pa(FIRST))), (1, 5));
}

#[test]
fn popf_of_ac_ends_the_suspension_too() {
    let mut guest = with_page(KERNEL | US);
    supervisor_identity(&guest);
    set_cr4(&mut guest, cr4::SMAP);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.pushfq().unwrap();
        a.stac().unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
        a.popfq().unwrap();
        a.mov(qword_ptr(rsi), 5).unwrap();
    });
    assert_eq!(page_fault(&mut guest), (3, PAGE));
}

#[test]
fn smep_keeps_the_supervisor_from_user_code() {
    let mut guest = with_page(KERNEL | US);
    supervisor_identity(&guest);
    set_cr4(&mut guest, cr4::SMEP);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.jmp(rsi).unwrap();
    });
    assert_eq!(page_fault(&mut guest), (0x11, PAGE));
}

#[test]
fn cr0_wp_lets_the_supervisor_write_read_only_pages() {
    let mut guest = with_page(P);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.mov(rax, cr0).unwrap();
        a.btr(rax, 16).unwrap();
        a.mov(cr0, rax).unwrap();
        a.mov(qword_ptr(rsi), 9).unwrap();
        a.bts(rax, 16).unwrap();
        a.mov(cr0, rax).unwrap();
        a.mov(qword_ptr(rsi), 10).unwrap();
    });
    assert_eq!(page_fault(&mut guest), (3, PAGE));
    assert_eq!(guest.memory.read_u64(Pa(FIRST)), 9);
    assert_eq!(guest.memory.read_u64(Pa(PTE)) & 0x60, 0x60, "accessed and dirty");
}

#[test]
fn protection_keys_refuse_user_pages_of_their_colour() {
    let mut guest = with_page(KERNEL | US | 5 << 59);
    set_cr4(&mut guest, cr4::PKE);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 2 << 10).unwrap();
        a.wrpkru().unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
        a.mov(qword_ptr(rsi), 7).unwrap();
    });
    assert_eq!(page_fault(&mut guest), (0x23, PAGE));
    assert_eq!((guest.reg(RBX), guest.state.pkru), (1, 2 << 10));
}

#[test]
fn execute_disable_needs_nxe() {
    let mut guest = with_page(KERNEL | 1 << 63);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.jmp(rsi).unwrap();
    });
    assert_eq!(page_fault(&mut guest), (0x11, PAGE));
    let mut guest = with_page(KERNEL | 1 << 63);
    guest.vmcs.current.set(GUEST_IA32_EFER, efer::LME | efer::LMA | efer::SCE);
    guest.load(|a| {
        a.mov(rsi, PAGE).unwrap();
        a.mov(rbx, qword_ptr(rsi)).unwrap();
    });
    assert_eq!(page_fault(&mut guest), (9, PAGE), "a reserved bit");
}

#[test]
fn the_vmm_sees_linear_memory_as_the_guest_does() {
    let mut guest = with_page(P | US);
    guest.load(|a| a.cpuid().unwrap());
    assert_eq!(guest.run(100).cause, Cause::Vm(Reason::Cpuid));
    let mut value = [0; 8];
    let mut linear = guest.cpu.linear();
    linear.read(Gva(PAGE), &mut value).unwrap();
    assert_eq!(u64::from_le_bytes(value), 1);
    assert_eq!(linear.write(Gva(PAGE), &value), Err(LinearFault::Exception(Exception::pf(PAGE, 3))));
    let across = Gva(PAGE + 0xffc);
    assert_eq!(linear.read(across, &mut value), Err(LinearFault::Exception(Exception::pf(PAGE + 0x1000, 0))));
    assert_eq!(linear.read(Gva(1 << 60), &mut value), Err(LinearFault::Exception(Exception::gp(0))));
    assert_eq!(linear.write(Gva(STACK - 4), &value), Ok(()));
}

#[test]
fn pae_paging_reads_its_four_entries_when_cr3_is_loaded() {
    let mut guest = Guest::new();
    const PDPT: u64 = 0x5_0020;
    let vmcs = &mut guest.vmcs.current;
    vmcs.set_control(IA_32E_MODE_GUEST, false);
    vmcs.set(GUEST_IA32_EFER, 0);
    vmcs.set(GUEST_CR3, PDPT);
    vmcs.set(GUEST_CR0, cr0::PE | cr0::NE | cr0::PG | cr0::ET);
    vmcs.set(GUEST_CR4, cr4::PAE | cr4::VMXE);
    vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xc09b));
    vmcs.set(GUEST_IDTR_BASE, IDT);
    vmcs.set(GUEST_RFLAGS, rflags::FIXED);
    vmcs.set(EXCEPTION_BITMAP, u32::MAX);
    // An identity map by the 2-MiB pages of the test's own tables.
    guest.memory.write_u64(Pa(PDPT), (PML4 + 0x2000) | P);
    guest.memory.write_u64(Pa(0x5_1000), (PML4 + 0x2000) | P);
    guest.memory.write_u64(Pa(0x5_1008), (PML4 + 0x2000) | P);
    guest.memory.write_u64(Pa(0x5_2000), (PML4 + 0x2000) | P | RW);
    let mut a = CodeAssembler::new(32).unwrap();
    a.mov(eax, 0x5_1000).unwrap();
    a.mov(cr3, eax).unwrap();
    a.mov(ebx, dword_ptr(0x4000_0000 + CODE as u32)).unwrap();
    a.mov(eax, 0x5_2000).unwrap();
    a.mov(cr3, eax).unwrap();
    let code = a.assemble(CODE).unwrap();
    guest.memory.write(Pa(CODE), &code);
    assert_eq!(guest.run(100).cause, Cause::Vm(Reason::ExceptionOrNmi), "{:x?}", guest.vmcs.current);
    assert_eq!(guest.reg(RBX) as u8, 0xb8, "the first byte of the code, one GiB up");
    assert_eq!(
        guest.vmcs.current.get(EXITING_EVENT_IDENTIFICATION).0 as u8,
        vector::GP,
        "R/W is reserved in a PDPTE"
    );
    assert_eq!(guest.vmcs.current.get(GUEST_CR3), 0x5_1000);
}
