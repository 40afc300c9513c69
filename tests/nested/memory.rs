//! EPT. SDM Vol. 3, "The Extended Page Table Mechanism (EPT)".

use crate::asm;
use crate::code::*;
use crate::l1::{EPTP_VALUE, guest};
use crate::place::*;
use iced_x86::code_asm::*;
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::table::*;

const VMCALL: u64 = Reason::Vmcall as u64;
const VIOLATION: u64 = Reason::EptViolation as u64;
const MISCONFIGURATION: u64 = Reason::EptMisconfiguration as u64;

/// EPT entries.
const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
const WRITE_BACK: u64 = 6 << 3;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

/// Exit qualification of EPT violations: the access, and from bit 3 on what the entries allow.
const READ: u64 = 1;
const WRITE: u64 = 2;
const FETCH: u64 = 4;
const ALLOWED: u32 = 3;
const LINEAR_VALID: u64 = 1 << 7;
const LINEAR_FINAL: u64 = LINEAR_VALID | 1 << 8;

/// The EPT entry of the first page of [`PAGES`].
fn map(l1: &mut Code, entry: u64) -> &mut Code {
    l1.store(EPT_PT, entry)
}

/// The next exit, with the addresses that EPT violations have.
fn exit(l1: &mut Code) -> &mut Code {
    l1.enter()
        .read(EXIT_REASON)
        .read(EXIT_QUALIFICATION)
        .read(GUEST_PHYSICAL_ADDRESS)
        .read(GUEST_LINEAR_ADDRESS)
}

#[test]
fn a_read_of_a_page_that_is_not_present_is_an_ept_violation() {
    let log = guest(
        |l1| {
            map(l1, 0);
            exit(l1);
        },
        |l2| asm!(l2; mov(al, byte_ptr(PAGES as u32 + 0x123))),
    );
    assert_eq!(log, [VIOLATION, READ | LINEAR_FINAL, PAGES + 0x123, PAGES + 0x123]);
}

#[test]
fn a_write_to_a_page_that_is_not_writable_is_an_ept_violation() {
    let log = guest(
        |l1| {
            map(l1, PAGES | WRITE_BACK | R | X);
            exit(l1);
        },
        |l2| asm!(l2; mov(al, byte_ptr(PAGES as u32)); mov(byte_ptr(PAGES as u32 + 8), al)),
    );
    let expected = [VIOLATION, WRITE | (R | X) << ALLOWED | LINEAR_FINAL, PAGES + 8, PAGES + 8];
    assert_eq!(log, expected);
}

#[test]
fn a_fetch_from_a_page_that_is_not_executable_is_an_ept_violation() {
    let log = guest(
        |l1| {
            map(l1, PAGES | WRITE_BACK | R | W);
            exit(l1).read(GUEST_RIP);
        },
        |l2| asm!(l2; mov(eax, PAGES as u32 + 0x10); jmp(rax)),
    );
    let qualification = FETCH | (R | W) << ALLOWED | LINEAR_FINAL;
    assert_eq!(log, [VIOLATION, qualification, PAGES + 0x10, PAGES + 0x10, PAGES + 0x10]);
}

#[test]
fn a_page_can_be_executable_and_not_readable() {
    let with = |access: fn(&mut Code)| {
        guest(
            |l1| {
                // VMCALL
                l1.store(PAGES, 0x00c1_010f);
                map(l1, PAGES | WRITE_BACK | X).enter().read(EXIT_REASON);
            },
            access,
        )
    };
    assert_eq!(with(|l2| asm!(l2; mov(eax, PAGES as u32); jmp(rax))), [VMCALL]);
    assert_eq!(with(|l2| asm!(l2; mov(cl, byte_ptr(PAGES as u32)))), [VIOLATION]);
}

#[test]
fn a_read_modify_write_violates_as_a_write() {
    let log = guest(
        |l1| {
            map(l1, PAGES | WRITE_BACK | R);
            exit(l1);
        },
        |l2| asm!(l2; add(byte_ptr(PAGES as u32), 1)),
    );
    assert_eq!((log[0], log[1] & (WRITE | FETCH), log[2]), (VIOLATION, WRITE, PAGES));
}

#[test]
fn a_violation_while_the_guests_page_tables_are_walked_says_so() {
    let log = guest(
        |l1| {
            map(l1, 0).write(GUEST_CR3, PAGES);
            exit(l1);
        },
        |_| {},
    );
    assert_eq!(log, [VIOLATION, READ | LINEAR_VALID, PAGES, CODE_L2]);
}

#[test]
fn an_entry_that_is_writable_and_not_readable_is_a_misconfiguration() {
    for entry in [PAGES | WRITE_BACK | W, PAGES | 2 << 3 | R, PAGES | 1 << 51 | WRITE_BACK | R] {
        let log = guest(
            |l1| {
                map(l1, entry).enter().read(EXIT_REASON).read(GUEST_PHYSICAL_ADDRESS);
            },
            |l2| asm!(l2; mov(al, byte_ptr(PAGES as u32 + 1))),
        );
        assert_eq!(log, [MISCONFIGURATION, PAGES + 1], "{entry:#x}");
    }
}

#[test]
fn after_an_ept_violation_is_repaired_the_instruction_completes() {
    let log = guest(
        |l1| {
            l1.store(PAGES, 0x1234);
            map(l1, 0).enter().read(EXIT_REASON);
            map(l1, PAGES | WRITE_BACK | R).enter().read(EXIT_REASON);
            asm!(l1; mov(rax, rbx));
            l1.log_rax();
        },
        |l2| asm!(l2; mov(rbx, qword_ptr(PAGES as u32))),
    );
    assert_eq!(log, [VIOLATION, VMCALL, 0x1234]);
}

#[test]
fn after_invept_what_l1_took_away_is_gone() {
    let log = guest(
        |l1| {
            l1.enter().read(EXIT_REASON);
            map(l1, PAGES | WRITE_BACK | R).invept(1, EPTP_VALUE);
            l1.write(GUEST_RIP, CODE_L2);
            exit(l1);
        },
        |l2| asm!(l2; mov(byte_ptr(PAGES as u32), 1)),
    );
    assert_eq!(log, [VMCALL, VIOLATION, WRITE | R << ALLOWED | LINEAR_FINAL, PAGES, PAGES]);
}

#[test]
fn after_invept_a_page_that_was_remapped_is_another_page() {
    const NEXT: u64 = PAGES + 0x1000;
    for kind in [1, 2] {
        let log = guest(
            |l1| {
                l1.store(PAGES, 0x11).store(NEXT, 0x22).enter();
                map(l1, NEXT | WRITE_BACK | R).invept(kind, EPTP_VALUE);
                l1.write(GUEST_RIP, CODE_L2).enter();
            },
            |l2| l2.log_memory(PAGES).done(),
        );
        assert_eq!(log, [0x11, 0x22]);
    }
}

#[test]
fn another_eptp_is_another_address_space() {
    const OTHER_PML4: u64 = SCRATCH;
    const OTHER_EPTP: u64 = OTHER_PML4 | EPTP_VALUE & 0xfff;
    let log = guest(
        |l1| {
            l1.enter().read(EXIT_REASON);
            l1.write(EPTP, OTHER_EPTP)
                .write(GUEST_RIP, CODE_L2)
                .enter()
                .read(EXIT_REASON)
                .read(GUEST_LINEAR_ADDRESS);
            l1.write(EPTP, EPTP_VALUE).enter().read(EXIT_REASON);
        },
        |_| {},
    );
    assert_eq!(log, [VMCALL, VIOLATION, CODE_L2, VMCALL]);
}

#[test]
fn accessed_and_dirty_flags_are_set_if_the_eptp_enables_them() {
    const ENABLE: u64 = 1 << 6;
    const ENTRY: u64 = PAGES | WRITE_BACK | R | W;
    let log = guest(
        |l1| {
            map(l1, ENTRY).write(EPTP, EPTP_VALUE | ENABLE);
            l1.enter().log_memory(EPT_PT).skip().enter().log_memory(EPT_PT);
        },
        |l2| asm!(l2; mov(al, byte_ptr(PAGES as u32)); vmcall(); mov(byte_ptr(PAGES as u32), al)),
    );
    assert_eq!(log, [ENTRY | ACCESSED, ENTRY | ACCESSED | DIRTY]);
}

#[test]
fn without_them_the_flags_stay_clear() {
    const ENTRY: u64 = PAGES | WRITE_BACK | R | W;
    let log = guest(
        |l1| map(l1, ENTRY).enter().log_memory(EPT_PT).done(),
        |l2| asm!(l2; mov(byte_ptr(PAGES as u32), al)),
    );
    assert_eq!(log, [ENTRY]);
}

#[test]
fn a_guest_physical_page_without_memory_reads_all_ones() {
    const HOLE: u64 = 0x9000_0000;
    let log = guest(
        |l1| {
            map(l1, HOLE | R | W).enter();
        },
        |l2| {
            l2.store(PAGES, 5).log_memory(PAGES);
        },
    );
    assert_eq!(log, [u64::MAX]);
}

#[test]
fn a_device_of_l1_that_ept_maps_is_l2s() {
    const IOAPIC: u64 = 0xfec0_0000;
    const VERSION: u64 = 1;
    let log = guest(
        |l1| {
            map(l1, IOAPIC | R | W).enter().read(EXIT_REASON);
        },
        |l2| {
            asm!(l2; mov(ebx, PAGES as u32); mov(dword_ptr(rbx), VERSION as i32); mov(eax, dword_ptr(rbx + 0x10)));
            l2.log_rax();
        },
    );
    assert_eq!((log[0] & 0xff, log[1]), (0x20, VMCALL), "{log:x?}");
}

#[test]
fn an_instruction_can_have_both_operands_in_devices_of_l2() {
    const IOAPIC: u64 = 0xfec0_0000;
    const HOLE: u64 = 0x9000_0000;
    const SELECT: u64 = 0;
    let log = guest(
        |l1| {
            map(l1, IOAPIC | R | W).store(EPT_PT + 8, HOLE | R | W);
            l1.enter().read(EXIT_REASON);
        },
        |l2| {
            let (ioapic, hole) = (PAGES as u32, PAGES as u32 + 0x1000);
            asm!(l2; mov(dword_ptr(ioapic + SELECT as u32), 1); mov(edi, ioapic); mov(esi, hole); movsd());
            asm!(l2; xor(eax, eax); mov(eax, dword_ptr(ioapic)));
            l2.log_rax();
        },
    );
    assert_eq!(log, [0xff, VMCALL], "all ones went to the register select");
}

#[test]
fn an_access_that_crosses_into_a_page_that_is_not_present_violates_there() {
    let log = guest(
        |l1| {
            map(l1, 0);
            exit(l1);
        },
        |l2| asm!(l2; mov(rax, qword_ptr(PAGES as u32 - 4))),
    );
    assert_eq!(log, [VIOLATION, READ | LINEAR_FINAL, PAGES, PAGES]);
}

/// The page-directory entry of [`NOT_MAPPED`].
const DIRECTORY_ENTRY: u64 = PML4 + 0x2000 + 8 * (NOT_MAPPED >> 21);
const LARGE_WRITABLE: u64 = 0x83;
const HERE: u64 = 0x80_0000;
const THERE: u64 = 0xa0_0000;

/// L2 reads through a mapping that L1 changes between two entries.
fn read_through_changing_mapping(l1: &mut Code, between: fn(&mut Code)) {
    l1.store(HERE, 0x11).store(THERE, 0x22).store(DIRECTORY_ENTRY, HERE | LARGE_WRITABLE);
    l1.enter().store(DIRECTORY_ENTRY, THERE | LARGE_WRITABLE);
    between(l1);
    l1.write(GUEST_RIP, CODE_L2).enter();
}

#[test]
fn without_vpid_an_entry_invalidates_linear_mappings() {
    let log = guest(|l1| read_through_changing_mapping(l1, |_| {}), |l2| l2.log_memory(NOT_MAPPED).done());
    assert_eq!(log, [0x11, 0x22]);
}

#[test]
fn with_vpid_invvpid_invalidates_linear_mappings() {
    let kinds: [fn(&mut Code); 4] = [
        |l1| l1.invvpid(0, 7, NOT_MAPPED).done(),
        |l1| l1.invvpid(1, 7, 0).done(),
        |l1| l1.invvpid(2, 0, 0).done(),
        |l1| l1.invvpid(3, 7, 0).done(),
    ];
    for kind in kinds {
        let log = guest(
            |l1| {
                l1.set(ENABLE_VPID).write(VPID, 7);
                read_through_changing_mapping(l1, kind);
            },
            |l2| l2.log_memory(NOT_MAPPED).done(),
        );
        assert_eq!(log, [0x11, 0x22]);
    }
}

#[test]
fn l2s_own_invlpg_and_mov_to_cr3_invalidate_its_mappings() {
    let invalidations: [fn(&mut Code); 2] =
        [|l2| asm!(l2; invlpg(byte_ptr(NOT_MAPPED as u32))), |l2| asm!(l2; mov(rax, cr3); mov(cr3, rax))];
    for invalidate in invalidations {
        let log = guest(
            |l1| {
                l1.set(ENABLE_VPID).write(VPID, 7).store(HERE, 0x11).store(THERE, 0x22);
                l1.store(DIRECTORY_ENTRY, HERE | LARGE_WRITABLE).enter();
            },
            |l2| {
                l2.log_memory(NOT_MAPPED).store(DIRECTORY_ENTRY, THERE | LARGE_WRITABLE);
                invalidate(l2);
                l2.log_memory(NOT_MAPPED);
            },
        );
        assert_eq!(log, [0x11, 0x22]);
    }
}

#[test]
fn a_violation_of_an_iret_that_had_unblocked_nmis_says_so() {
    const NMI_UNBLOCKING: u64 = 1 << 12;
    let log = guest(
        |l1| {
            map(l1, 0).set(NMI_EXITING).set(VIRTUAL_NMIS).write(GUEST_RSP, PAGES);
            l1.write(GUEST_INTERRUPTIBILITY_STATE, 1 << 3);
            l1.enter().read(EXIT_REASON).read(EXIT_QUALIFICATION).read(GUEST_INTERRUPTIBILITY_STATE);
        },
        |l2| asm!(l2; iretq()),
    );
    assert_eq!(log, [VIOLATION, READ | LINEAR_FINAL | NMI_UNBLOCKING, 0]);
}
