//! Exits that instructions of L2 cause. SDM Vol. 3, "Instructions That Cause VM Exits".

use crate::asm;
use crate::code::*;
use crate::l1::guest;
use crate::place::*;
use iced_x86::code_asm::*;
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::table::*;

const EXCEPTION_OR_NMI: u64 = Reason::ExceptionOrNmi as u64;
const CPUID: u64 = Reason::Cpuid as u64;
const HLT: u64 = Reason::Hlt as u64;
const VMCALL: u64 = Reason::Vmcall as u64;
const IO: u64 = Reason::IoInstruction as u64;
const CR_ACCESS: u64 = Reason::ControlRegisterAccess as u64;

/// The next exit's reason and qualification.
fn exit(l1: &mut Code) -> &mut Code {
    l1.enter().read(EXIT_REASON).read(EXIT_QUALIFICATION)
}

/// The next exit's reason and qualification; L2 goes on behind the instruction.
fn exit_and_skip(l1: &mut Code) -> &mut Code {
    exit(l1).skip()
}

#[test]
fn cpuid_exits_unconditionally() {
    let log =
        guest(|l1| exit(l1).read(VM_EXIT_INSTRUCTION_LENGTH).read(GUEST_RIP).done(), |l2| asm!(l2; cpuid()));
    assert_eq!(log, [CPUID, 0, 2, CODE_L2]);
}

#[test]
fn vmcall_exits_and_every_other_vmx_instruction_too() {
    let log = guest(
        |l1| {
            for _ in 0..12 {
                l1.enter().read(EXIT_REASON).skip();
            }
        },
        |l2| {
            asm!(l2; vmcall(); vmlaunch(); vmresume(); vmxoff(); vmread(rax, rcx); vmwrite(rcx, rax));
            asm!(l2; vmptrst(qword_ptr(OPERAND as u32)); vmptrld(qword_ptr(OPERAND as u32)));
            asm!(l2; vmclear(qword_ptr(OPERAND as u32)); vmxon(qword_ptr(OPERAND as u32)));
            asm!(l2; invept(rax, xmmword_ptr(OPERAND as u32)); invvpid(rax, xmmword_ptr(OPERAND as u32)));
        },
    );
    assert_eq!(log, [18, 20, 24, 26, 23, 25, 22, 21, 19, 27, 50, 53]);
}

#[test]
fn general_registers_pass_through_entries_and_exits() {
    let log = guest(
        |l1| {
            asm!(l1; mov(rbx, 0x1111_2222_3333_4444u64));
            l1.enter();
            asm!(l1; mov(rax, rsi));
            l1.log_rax();
        },
        |l2| asm!(l2; lea(rsi, ptr(rbx + 1)); vmcall()),
    );
    assert_eq!(log, [0x1111_2222_3333_4445]);
}

#[test]
fn hlt_exits_if_hlt_exiting_is_1() {
    let log = guest(
        |l1| {
            l1.set(HLT_EXITING);
            exit(l1).read(VM_EXIT_INSTRUCTION_LENGTH).read(GUEST_ACTIVITY_STATE);
        },
        |l2| asm!(l2; hlt()),
    );
    assert_eq!(log, [HLT, 0, 1, 0]);
}

#[test]
fn io_exits_unconditionally_if_the_control_says_so() {
    let log = guest(
        |l1| {
            l1.set(UNCONDITIONAL_IO_EXITING);
            for _ in 0..4 {
                exit_and_skip(l1);
            }
        },
        |l2| {
            asm!(l2; in_(al, 0x60); out(0x80, al); mov(edx, 0x1234); in_(eax, dx); mov(edx, 0x1234); out(dx, ax));
        },
    );
    const IN: u64 = 1 << 3;
    const IMMEDIATE: u64 = 1 << 6;
    let port = |port: u64| port << 16;
    let expected = [
        [IO, port(0x60) | IMMEDIATE | IN],
        [IO, port(0x80) | IMMEDIATE],
        [IO, port(0x1234) | IN | 3],
        [IO, port(0x1234) | 1],
    ];
    assert_eq!(log, expected.concat());
}

#[test]
fn io_exits_by_the_bits_of_the_io_bitmaps() {
    let log = guest(
        |l1| {
            l1.set(USE_IO_BITMAPS).set(UNCONDITIONAL_IO_EXITING);
            l1.write(ADDRESS_OF_IO_BITMAP_A, IO_BITMAP_A).write(ADDRESS_OF_IO_BITMAP_B, IO_BITMAP_B);
            l1.set_bit(IO_BITMAP_A, 0x81).set_bit(IO_BITMAP_B, 0x7ffe);
            for _ in 0..3 {
                exit_and_skip(l1);
            }
        },
        |l2| {
            asm!(l2; out(0x80, al); out(0x81, al); out(0x80, ax); mov(edx, 0xfffe); out(dx, al); mov(edx, 0x7ffe); out(dx, al));
        },
    );
    assert_eq!(log, [IO, 0x81_0040, IO, 0x80_0041, IO, 0xfffe_0000], "80H and 7FFEH pass");
}

#[test]
fn an_access_that_wraps_around_the_port_space_exits_with_io_bitmaps() {
    let log = guest(
        |l1| {
            l1.set(USE_IO_BITMAPS);
            l1.write(ADDRESS_OF_IO_BITMAP_A, IO_BITMAP_A).write(ADDRESS_OF_IO_BITMAP_B, IO_BITMAP_B);
            exit(l1);
        },
        |l2| asm!(l2; mov(edx, 0xffff); in_(ax, dx)),
    );
    assert_eq!(log, [IO, 0xffff_0009]);
}

#[test]
fn string_io_tells_its_linear_address_and_rep() {
    let log = guest(
        |l1| {
            l1.set(UNCONDITIONAL_IO_EXITING);
            exit(l1)
                .read(GUEST_LINEAR_ADDRESS)
                .read(IO_RCX)
                .read(IO_RSI)
                .read(VM_EXIT_INSTRUCTION_INFORMATION);
            asm!(l1; mov(rax, rcx));
        },
        |l2| {
            asm!(l2; mov(edx, 0x80); mov(ecx, 5); mov(esi, SCRATCH as u32));
            l2.asm.rep().outsb().expect("REP OUTSB");
        },
    );
    const STRING_REP: u64 = 0x30;
    assert_eq!(log[..5], [IO, 0x80_0000 | STRING_REP, SCRATCH, 5, SCRATCH]);
    const ADDRESS_64: u64 = 2 << 7;
    const DS: u64 = 3 << 15;
    assert_eq!(log[5] & 0x3_8380, ADDRESS_64 | DS);
}

#[test]
fn io_that_does_not_exit_reaches_the_devices() {
    let log = guest(
        |l1| exit(l1).done(),
        |l2| {
            asm!(l2; mov(al, 0x0f); out(0x70, al); mov(al, 0x5a); out(0x71, al); xor(eax, eax); in_(al, 0x71));
            l2.log_rax();
        },
    );
    assert_eq!(log, [0x5a, VMCALL, 0]);
}

#[test]
fn rdmsr_and_wrmsr_exit_without_msr_bitmaps() {
    let log = guest(
        |l1| {
            exit_and_skip(l1);
            exit_and_skip(l1);
        },
        |l2| asm!(l2; mov(ecx, msr::SYSENTER_CS); rdmsr(); wrmsr()),
    );
    assert_eq!(log, [31, 0, 32, 0]);
}

#[test]
fn rdmsr_and_wrmsr_exit_by_the_bits_of_the_msr_bitmaps() {
    const READ_LOW: u32 = 0;
    const READ_HIGH: u32 = 0x2000;
    const WRITE_LOW: u32 = 0x4000;
    let log = guest(
        |l1| {
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            l1.set_bit(MSR_BITMAP, READ_LOW + msr::SYSENTER_CS);
            l1.set_bit(MSR_BITMAP, READ_HIGH + (msr::LSTAR & 0x1fff));
            l1.set_bit(MSR_BITMAP, WRITE_LOW + msr::SYSENTER_CS + 1);
            for _ in 0..3 {
                l1.enter().read(EXIT_REASON).skip();
            }
        },
        |l2| {
            l2.wrmsr(msr::SYSENTER_CS, 8);
            l2.wrmsr(msr::SYSENTER_CS + 1, 0);
            asm!(l2; mov(ecx, msr::SYSENTER_CS); rdmsr(); mov(ecx, msr::LSTAR); rdmsr());
        },
    );
    assert_eq!(log, [32, 31, 31]);
}

#[test]
fn an_msr_outside_of_both_ranges_exits_whatever_the_bitmaps_say() {
    let log = guest(
        |l1| {
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            l1.enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; mov(ecx, 0x4000_0000); rdmsr()),
    );
    assert_eq!(log, [31]);
}

#[test]
fn an_msr_that_l1_passes_through_and_does_not_exist_faults_in_l2() {
    let log = guest(
        |l1| {
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            l1.enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; mov(ecx, 0x1fff); rdmsr()),
    );
    assert_eq!(log, [exception_in_l2(13, 0), VMCALL]);
}

#[test]
fn mov_to_cr0_exits_if_a_bit_of_the_mask_differs_from_the_shadow() {
    let log = guest(
        |l1| {
            l1.write(CR0_GUEST_HOST_MASK, cr0::AM | cr0::TS).write(CR0_READ_SHADOW, cr0::TS);
            exit_and_skip(l1).read(GUEST_CR0);
        },
        |l2| {
            // TS as in the shadow and MP, which is L2's own: no exit. Then AM.
            asm!(l2; mov(rax, cr0));
            l2.log_rax();
            asm!(l2; xor(eax, cr0::MP as i32); mov(cr0, rax); mov(rcx, rax); or(ecx, cr0::AM as i32); mov(cr0, rcx));
        },
    );
    const TO_CR0_FROM_RCX: u64 = 1 << 8;
    const INITIAL: u64 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    assert_eq!(log, [INITIAL | cr0::TS, CR_ACCESS, TO_CR0_FROM_RCX, INITIAL & !cr0::MP]);
}

#[test]
fn mov_to_cr4_exits_by_mask_and_shadow_and_mov_from_cr4_reads_the_shadow() {
    let log = guest(
        |l1| {
            l1.write(CR4_GUEST_HOST_MASK, cr4::VMXE | cr4::PGE).write(CR4_READ_SHADOW, cr4::PGE);
            exit_and_skip(l1).read(GUEST_CR4);
        },
        |l2| {
            asm!(l2; mov(rax, cr4));
            l2.log_rax();
            asm!(l2; or(eax, cr4::TSD as i32); mov(cr4, rax); or(eax, cr4::VMXE as i32); mov(cr4, rax));
        },
    );
    const TO_CR4_FROM_RAX: u64 = 4;
    assert_eq!(log, [cr4::PAE | cr4::PGE, CR_ACCESS, TO_CR4_FROM_RAX, cr4::PAE | cr4::VMXE | cr4::TSD]);
}

#[test]
fn a_bit_of_cr4_that_vmx_operation_fixes_faults_in_l2_if_l2_owns_it() {
    let log = guest(
        |l1| exit(l1).done(),
        |l2| asm!(l2; mov(rax, cr4); and(rax, !(cr4::VMXE as i32)); mov(cr4, rax)),
    );
    assert_eq!(log, [exception_in_l2(13, 0), VMCALL, 0]);
}

#[test]
fn clts_and_lmsw_exit_by_the_mask_of_cr0() {
    let log = guest(
        |l1| {
            l1.write(CR0_GUEST_HOST_MASK, cr0::TS).write(CR0_READ_SHADOW, cr0::TS);
            exit_and_skip(l1);
            exit_and_skip(l1);
        },
        |l2| asm!(l2; clts(); mov(eax, 1u32); lmsw(ax)),
    );
    const CLTS: u64 = 2 << 4;
    const LMSW: u64 = 3 << 4;
    assert_eq!(log, [CR_ACCESS, CLTS, CR_ACCESS, LMSW | 1 << 16]);
}

#[test]
fn mov_to_and_from_cr3_exit_if_their_controls_are_1() {
    let log = guest(
        |l1| {
            l1.set(CR3_LOAD_EXITING).set(CR3_STORE_EXITING);
            exit_and_skip(l1);
            exit_and_skip(l1);
        },
        |l2| asm!(l2; mov(rbx, cr3); mov(cr3, r8)),
    );
    assert_eq!(log, [CR_ACCESS, 3 | 1 << 4 | 3 << 8, CR_ACCESS, 3 | 8 << 8]);
}

#[test]
fn mov_to_cr3_of_a_target_value_does_not_exit() {
    let log = guest(
        |l1| {
            l1.set(CR3_LOAD_EXITING).write(CR3_TARGET_COUNT, 2).write(CR3_TARGET_VALUE_1, PML4);
            exit(l1).read(GUEST_RIP);
        },
        |l2| asm!(l2; mov(eax, PML4 as u32); mov(cr3, rax); vmcall()),
    );
    assert_eq!(log[..2], [VMCALL, 0]);
}

#[test]
fn mov_to_and_from_cr8_exit_if_their_controls_are_1() {
    let log = guest(
        |l1| {
            l1.set(CR8_LOAD_EXITING).set(CR8_STORE_EXITING);
            exit_and_skip(l1);
            exit_and_skip(l1);
        },
        |l2| asm!(l2; mov(cr8, rax); mov(rdx, cr8)),
    );
    assert_eq!(log, [CR_ACCESS, 8, CR_ACCESS, 8 | 1 << 4 | 2 << 8]);
}

#[test]
fn mov_dr_exits_if_the_control_is_1() {
    let log = guest(
        |l1| {
            l1.set(MOV_DR_EXITING);
            exit_and_skip(l1);
            exit_and_skip(l1);
        },
        |l2| asm!(l2; mov(dr7, rcx); mov(rdx, dr6)),
    );
    const FROM: u64 = 1 << 4;
    assert_eq!(log, [29, 7 | 1 << 8, 29, 6 | FROM | 2 << 8]);
}

#[test]
fn invlpg_exits_with_the_linear_address_if_the_control_is_1() {
    let log = guest(
        |l1| {
            l1.set(INVLPG_EXITING);
            exit(l1);
        },
        |l2| asm!(l2; invlpg(byte_ptr(NOT_MAPPED as u32 + 5))),
    );
    assert_eq!(log, [14, NOT_MAPPED + 5]);
}

#[test]
fn rdtsc_exits_if_the_control_is_1() {
    let log = guest(
        |l1| {
            l1.set(RDTSC_EXITING);
            exit(l1);
        },
        |l2| asm!(l2; rdtsc()),
    );
    assert_eq!(log, [16, 0]);
}

#[test]
fn rdtsc_and_rdmsr_of_the_tsc_add_the_offset() {
    const AHEAD: u64 = 1 << 50;
    let log = guest(
        |l1| {
            l1.set(USE_TSC_OFFSETTING).write(TSC_OFFSET, AHEAD);
            l1.set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
            l1.rdmsr(msr::TSC).log_rax().enter();
            l1.rdmsr(msr::TSC).log_rax();
        },
        |l2| {
            asm!(l2; rdtsc(); shl(rdx, 32); or(rax, rdx));
            l2.log_rax();
            l2.rdmsr(msr::TSC).log_rax();
        },
    );
    let ordered = [log[0] + AHEAD, log[1], log[2], log[3] + AHEAD];
    assert!(ordered.is_sorted() && log[3] - log[0] < 1_000_000, "{log:?}");
}

#[test]
fn rdtscp_is_undefined_unless_enabled() {
    let log = guest(
        |l1| {
            l1.enter().read(EXIT_REASON).set(ENABLE_RDTSCP).set(RDTSC_EXITING);
            l1.write(GUEST_RIP, CODE_L2).enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; rdtscp()),
    );
    assert_eq!(log, [exception_in_l2(6, 0), VMCALL, 51]);
}

#[test]
fn pause_and_wbinvd_and_descriptor_table_instructions_exit_by_their_controls() {
    let log = guest(
        |l1| {
            l1.set(PAUSE_EXITING).set(WBINVD_EXITING).set(DESCRIPTOR_TABLE_EXITING);
            for _ in 0..4 {
                l1.enter().read(EXIT_REASON).skip();
            }
        },
        |l2| asm!(l2; pause(); wbinvd(); sgdt(ptr(SCRATCH as u32)); sldt(eax)),
    );
    assert_eq!(log, [40, 54, 46, 47]);
}

#[test]
fn monitor_and_mwait_exit_by_their_controls() {
    let log = guest(
        |l1| {
            l1.set(MONITOR_EXITING).set(MWAIT_EXITING);
            l1.enter().read(EXIT_REASON).skip();
            l1.enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; mov(eax, SCRATCH as u32); xor(ecx, ecx); xor(edx, edx); monitor(); mwait()),
    );
    assert_eq!(log, [39, 36]);
}

#[test]
fn rdrand_rdseed_and_invpcid_exit_by_their_controls() {
    let log = guest(
        |l1| {
            l1.set(RDRAND_EXITING).set(RDSEED_EXITING).set(ENABLE_INVPCID).set(INVLPG_EXITING);
            for _ in 0..3 {
                l1.enter().read(EXIT_REASON).skip();
            }
        },
        |l2| asm!(l2; rdrand(rax); rdseed(rbx); invpcid(rax, xmmword_ptr(SCRATCH as u32))),
    );
    assert_eq!(log, [57, 61, 58]);
}

#[test]
fn xsetbv_and_invd_exit_unconditionally() {
    let log = guest(
        |l1| {
            l1.enter().read(EXIT_REASON).skip();
            l1.enter().read(EXIT_REASON).skip();
        },
        |l2| {
            asm!(l2; mov(rax, cr4); or(eax, cr4::OSXSAVE as i32); mov(cr4, rax); xor(ecx, ecx); xor(edx, edx);
                mov(eax, 3u32); xsetbv(); invd());
        },
    );
    assert_eq!(log, [55, 13]);
}

#[test]
fn an_exception_exits_if_its_bit_in_the_bitmap_is_1() {
    const UD_VECTOR: u64 = 6;
    const HARDWARE: u64 = 3 << 8;
    const VALID: u64 = 1 << 31;
    let log = guest(
        |l1| {
            l1.enter().read(EXIT_REASON);
            l1.write(EXCEPTION_BITMAP, 1 << UD_VECTOR).write(GUEST_RIP, CODE_L2);
            exit(l1).read(EXITING_EVENT_IDENTIFICATION).read(GUEST_RIP);
        },
        |l2| asm!(l2; ud2()),
    );
    let handled = [exception_in_l2(6, 0), VMCALL];
    assert_eq!(log[..2], handled);
    assert_eq!(log[2..], [EXCEPTION_OR_NMI, 0, VALID | HARDWARE | UD_VECTOR, CODE_L2]);
}

#[test]
fn a_software_exception_exits_with_its_instruction_length() {
    const SOFTWARE: u64 = 6 << 8;
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, 1 << 3);
            exit(l1).read(EXITING_EVENT_IDENTIFICATION).read(VM_EXIT_INSTRUCTION_LENGTH).read(GUEST_RIP);
        },
        |l2| asm!(l2; nop(); int3()),
    );
    assert_eq!(log, [EXCEPTION_OR_NMI, 0, 1 << 31 | SOFTWARE | 3, 1, CODE_L2 + 1]);
}

#[test]
fn int_n_of_an_intercepted_vector_does_not_exit() {
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, u64::from(u32::MAX));
            exit(l1);
        },
        |l2| asm!(l2; int(0x50); int(5)),
    );
    assert_eq!(log, [interrupt_in_l2(0x50), exception_in_l2(5, 0), VMCALL, 0]);
}

#[test]
fn a_page_fault_exits_with_its_address_as_qualification_and_leaves_cr2_alone() {
    const HARDWARE_WITH_CODE: u64 = 1 << 31 | 1 << 11 | 3 << 8;
    const WRITE: u64 = 2;
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, 1 << 14);
            asm!(l1; mov(eax, 0x1234u32); mov(cr2, rax));
            exit(l1).read(EXITING_EVENT_IDENTIFICATION).read(EXITING_EVENT_ERROR_CODE);
            asm!(l1; mov(rax, cr2));
            l1.log_rax();
        },
        |l2| asm!(l2; mov(byte_ptr(NOT_MAPPED as u32 + 9), 0)),
    );
    assert_eq!(log, [EXCEPTION_OR_NMI, NOT_MAPPED + 9, HARDWARE_WITH_CODE | 14, WRITE, 0x1234]);
}

#[test]
fn page_faults_exit_by_mask_and_match_of_the_error_code() {
    const WRITE: u64 = 2;
    let at_access = |bitmap: u64, access: fn(&mut Code)| {
        guest(
            |l1| {
                l1.write(EXCEPTION_BITMAP, bitmap);
                l1.write(PAGE_FAULT_ERROR_CODE_MASK, WRITE).write(PAGE_FAULT_ERROR_CODE_MATCH, WRITE);
                l1.enter().read(EXIT_REASON);
            },
            access,
        )
    };
    let load: fn(&mut Code) = |l2| asm!(l2; mov(al, byte_ptr(NOT_MAPPED as u32)));
    let store: fn(&mut Code) = |l2| asm!(l2; mov(byte_ptr(NOT_MAPPED as u32), al));
    assert_eq!(at_access(1 << 14, load), [exception_in_l2(14, 0), VMCALL]);
    assert_eq!(at_access(1 << 14, store), [EXCEPTION_OR_NMI]);
    assert_eq!(at_access(0, load), [EXCEPTION_OR_NMI]);
    assert_eq!(at_access(0, store), [exception_in_l2(14, 2), VMCALL]);
}

#[test]
fn a_triple_fault_in_l2_exits() {
    let log = guest(
        |l1| {
            l1.write(GUEST_IDTR_LIMIT, 0);
            exit(l1);
        },
        |l2| asm!(l2; ud2()),
    );
    assert_eq!(log, [Reason::TripleFault as u64, 0]);
}

#[test]
fn the_monitor_trap_flag_exits_after_each_instruction() {
    let log = guest(
        |l1| {
            l1.set(MONITOR_TRAP_FLAG);
            for _ in 0..3 {
                l1.enter().read(EXIT_REASON).read(GUEST_RIP);
            }
        },
        |l2| asm!(l2; nop(); xor(eax, eax); nop()),
    );
    assert_eq!(log, [37, CODE_L2 + 1, 37, CODE_L2 + 3, 37, CODE_L2 + 4]);
}
