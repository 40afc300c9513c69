use super::base::Role;
use super::message::Destination;
use super::*;

/// 100 MHz: a clock every 10 ns.
const CLOCK: Frequency = Frequency::new(100_000_000);
const X2APIC: u64 = 1 << 10;

const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const PERIODIC: u64 = 1 << 17;
const TSC_DEADLINE: u64 = 2 << 17;
const MASKED: u64 = 1 << 16;
const DIVIDE_BY_1: u64 = 0xb;

fn apic(id: u32) -> LocalApic {
    let role = if id == 0 { Role::Bootstrap } else { Role::Application };
    let mut apic = LocalApic::new(id, ApicBase::new(role, 46, true), CLOCK);
    write(&mut apic, SVR, 0x1ff, 0);
    apic
}

fn in_x2apic_mode(id: u32) -> LocalApic {
    let mut apic = apic(id);
    apic.set_base(apic.base().value() | X2APIC).expect("a transition that exists");
    apic
}

fn write(apic: &mut LocalApic, offset: u64, value: u64, now: Nanos) {
    let effect = apic.write_memory(offset, 4, value, 0, now);
    assert_eq!(effect, Effect::None, "{offset:#x}");
}

fn read(apic: &mut LocalApic, offset: u64) -> u64 {
    apic.read_memory(offset, 4, 0)
}

fn request(apic: &mut LocalApic, vector: u8) {
    apic.accept(Mode::Fixed, vector, Trigger::Edge);
}

#[test]
fn the_highest_vector_is_served_first_and_blocks_its_class() {
    let mut apic = apic(0);
    request(&mut apic, 0x31);
    request(&mut apic, 0x52);
    assert_eq!(apic.acknowledge(), Some(0x52));
    request(&mut apic, 0x5f);
    assert_eq!(apic.interrupt(), None, "same class");
    request(&mut apic, 0x60);
    assert_eq!(apic.acknowledge(), Some(0x60));
    apic.end_of_interrupt();
    apic.end_of_interrupt();
    assert_eq!(apic.acknowledge(), Some(0x5f));
}

#[test]
fn the_processor_priority_is_the_higher_of_task_and_service() {
    let mut apic = apic(0);
    write(&mut apic, TPR, 0x45, 0);
    assert_eq!(read(&mut apic, PPR), 0x45);
    request(&mut apic, 0x4f);
    assert_eq!(apic.interrupt(), None);
    request(&mut apic, 0x61);
    apic.acknowledge();
    assert_eq!(read(&mut apic, PPR), 0x60);
    write(&mut apic, EOI, 0, 0);
    write(&mut apic, TPR, 0, 0);
    assert_eq!(apic.interrupt(), Some(0x4f));
}

#[test]
fn eoi_tells_of_level_triggered_vectors_only() {
    let mut apic = apic(0);
    apic.accept(Mode::Fixed, 0x41, Trigger::Level);
    apic.acknowledge();
    assert_eq!(apic.write_memory(EOI, 4, 0, 0, 0), Effect::EndOfLevel(0x41));
    request(&mut apic, 0x41);
    apic.acknowledge();
    assert_eq!(apic.write_memory(EOI, 4, 0, 0, 0), Effect::None);
    assert_eq!(apic.write_memory(EOI, 4, 0, 0, 0), Effect::None, "nothing in service");
}

#[test]
fn the_one_shot_timer_expires_once() {
    let mut apic = apic(0);
    write(&mut apic, DIVIDE, DIVIDE_BY_1, 0);
    write(&mut apic, LVT_TIMER, 0xec, 0);
    write(&mut apic, INITIAL_COUNT, 1000, 500);
    assert_eq!(apic.next_event(), Some(10_500));
    assert_eq!(apic.read_memory(CURRENT_COUNT, 4, 500 + 10 * 400), 600);
    apic.tick(10_499);
    assert_eq!(apic.interrupt(), None);
    apic.tick(10_500);
    assert_eq!(apic.acknowledge(), Some(0xec));
    assert_eq!(apic.next_event(), None);
    assert_eq!(apic.read_memory(CURRENT_COUNT, 4, 20_000), 0);
}

#[test]
fn the_periodic_timer_reloads_without_drift() {
    let mut apic = LocalApic::new(0, ApicBase::new(Role::Bootstrap, 46, true), Frequency::new(24_000_000));
    write(&mut apic, SVR, 0x1ff, 0);
    write(&mut apic, DIVIDE, 0x3, 0);
    write(&mut apic, LVT_TIMER, PERIODIC | 0x40, 0);
    write(&mut apic, INITIAL_COUNT, 7, 0);
    for n in 1..1000u64 {
        let at = (n * 7 * 16 * 1000).div_ceil(24);
        assert_eq!(apic.next_event(), Some(at));
        apic.tick(at);
        assert_eq!(apic.acknowledge(), Some(0x40));
        apic.end_of_interrupt();
    }
    apic.tick(1_000_000_000);
    apic.acknowledge();
    apic.end_of_interrupt();
    assert_eq!(apic.interrupt(), None, "missed periods count once");
    assert!(apic.next_event() > Some(1_000_000_000));
}

#[test]
fn every_divide_configuration() {
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)] {
        let mut apic = apic(0);
        write(&mut apic, DIVIDE, code, 0);
        write(&mut apic, LVT_TIMER, 0x40, 0);
        write(&mut apic, INITIAL_COUNT, 10, 0);
        assert_eq!(apic.next_event(), Some(10 * 10 * divisor));
    }
}

#[test]
fn a_new_divisor_counts_the_rest() {
    let mut apic = apic(0);
    write(&mut apic, DIVIDE, DIVIDE_BY_1, 0);
    write(&mut apic, LVT_TIMER, 0x40, 0);
    write(&mut apic, INITIAL_COUNT, 100, 0);
    write(&mut apic, DIVIDE, 0, 400);
    assert_eq!(apic.next_event(), Some(400 + 60 * 20));
}

#[test]
fn a_masked_timer_counts_and_does_not_interrupt() {
    let mut apic = apic(0);
    write(&mut apic, DIVIDE, DIVIDE_BY_1, 0);
    write(&mut apic, LVT_TIMER, MASKED | 0x40, 0);
    write(&mut apic, INITIAL_COUNT, 100, 0);
    assert_eq!(apic.next_event(), None);
    assert_eq!(apic.read_memory(CURRENT_COUNT, 4, 300), 70);
    write(&mut apic, LVT_TIMER, 0x40, 2000);
    assert_eq!((apic.interrupt(), apic.next_event()), (None, None));
}

#[test]
fn the_tsc_deadline_disarms_itself() {
    let mut apic = apic(0);
    apic.set_tsc_deadline(5000, 2500, 0);
    assert_eq!(apic.tsc_deadline(), 0, "ignored in the other modes");
    write(&mut apic, LVT_TIMER, TSC_DEADLINE | 0x40, 0);
    write(&mut apic, INITIAL_COUNT, 100, 0);
    assert_eq!(apic.next_event(), None, "the initial count is ignored");
    apic.set_tsc_deadline(5000, 2500, 0);
    assert_eq!((apic.tsc_deadline(), apic.next_event()), (5000, Some(2500)));
    apic.tick(2500);
    assert_eq!((apic.tsc_deadline(), apic.acknowledge()), (0, Some(0x40)));
    apic.end_of_interrupt();
    apic.set_tsc_deadline(1, 0, 3000);
    assert_eq!(apic.acknowledge(), Some(0x40), "a deadline that has passed");
    apic.set_tsc_deadline(9000, 4500, 3000);
    apic.set_tsc_deadline(0, 0, 3000);
    assert_eq!(apic.next_event(), None);
    apic.set_tsc_deadline(9000, 4500, 3000);
    write(&mut apic, LVT_TIMER, 0x40, 3000);
    assert_eq!((apic.next_event(), apic.tsc_deadline()), (None, 0));
}

#[test]
fn software_disabling_masks_the_lvt_and_keeps_what_is_pending() {
    let mut apic = apic(0);
    write(&mut apic, LVT_TIMER, 0x40, 0);
    request(&mut apic, 0x70);
    write(&mut apic, SVR, 0xff, 0);
    assert_eq!(read(&mut apic, LVT_TIMER), MASKED | 0x40);
    write(&mut apic, LVT_TIMER, 0x40, 0);
    assert_eq!(read(&mut apic, LVT_TIMER), MASKED | 0x40, "the mask cannot be cleared");
    request(&mut apic, 0x71);
    assert_eq!(apic.acknowledge(), Some(0x70));
    assert_eq!(apic.acknowledge(), None);
    apic.accept(Mode::Nmi, 0, Trigger::Edge);
    assert!(apic.take_signals().nmi);
}

#[test]
fn interrupt_commands_become_messages() {
    let mut apic = apic(0);
    let mut send = |low: u64| match apic.write_memory(ICR, 4, low, 7, 0) {
        Effect::Send(message) => Some(message),
        _ => None,
    };
    assert_eq!(send(0x0c_4041), Some(message(Mode::Fixed, 0x41, Destination::AllBut(7))));
    assert_eq!(send(0x08_4041), Some(message(Mode::Fixed, 0x41, Destination::All)));
    assert_eq!(send(0x04_4041), Some(message(Mode::Fixed, 0x41, Destination::Processor(7))));
    assert_eq!(send(0x0c_4500), Some(message(Mode::Init, 0, Destination::AllBut(7))));
    assert_eq!(send(0x00_8500), None, "INIT level de-assert");
    assert_eq!(send(0x00_4699), Some(message(Mode::StartUp, 0x99, Destination::Physical(0))));
    write(&mut apic, ICR_HIGH, 0x0300_0000, 0);
    let sent = apic.write_memory(ICR, 4, 0x4841, 0, 0);
    assert_eq!(sent, Effect::Send(message(Mode::Fixed, 0x41, Destination::Logical(3))));
    assert_eq!(read(&mut apic, ICR), 0x4841, "delivery is never pending");
}

fn message(mode: Mode, vector: u8, destination: Destination) -> Message {
    Message { vector, mode, trigger: Trigger::Edge, destination }
}

#[test]
fn illegal_vectors_are_errors() {
    let mut apic = apic(0);
    write(&mut apic, LVT_ERROR, 0xfe, 0);
    write(&mut apic, ICR, 0x400f, 0);
    assert_eq!(read(&mut apic, ESR), 0, "not visible before it is written");
    write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR), 1 << 5);
    assert_eq!(apic.acknowledge(), Some(0xfe));
    request(&mut apic, 0x0f);
    write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR), 1 << 6);
    write(&mut apic, 0x500, 0, 0);
    write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR), 1 << 7);
    write(&mut apic, LVT_ERROR, 0x0e, 0);
    request(&mut apic, 3);
    assert_eq!(apic.interrupt(), None);
}

#[test]
fn destinations_in_xapic_mode() {
    let mut apic = apic(2);
    let hit = |apic: &LocalApic, destination| apic.is_addressed(2, destination);
    assert!(hit(&apic, Destination::Physical(2)) && hit(&apic, Destination::Physical(0xff)));
    assert!(!hit(&apic, Destination::Physical(3)));
    write(&mut apic, LDR, 0x0400_0000, 0);
    assert!(hit(&apic, Destination::Logical(0x06)) && !hit(&apic, Destination::Logical(0x08)));
    write(&mut apic, DFR, 0, 0);
    write(&mut apic, LDR, 0x2400_0000, 0);
    assert!(hit(&apic, Destination::Logical(0x2c)) && !hit(&apic, Destination::Logical(0x1c)));
    assert!(hit(&apic, Destination::Logical(0xff)));
    assert!(!hit(&apic, Destination::AllBut(2)) && hit(&apic, Destination::AllBut(1)));
}

#[test]
fn destinations_in_x2apic_mode() {
    let apic = in_x2apic_mode(0x23);
    let hit = |destination| apic.is_addressed(0, destination);
    assert!(hit(Destination::Physical(0x23)) && hit(Destination::Physical(u32::MAX)));
    assert!(!hit(Destination::Physical(0xff)));
    assert!(hit(Destination::Logical(0x0002_0008)) && hit(Destination::Logical(u32::MAX)));
    assert!(!hit(Destination::Logical(0x0002_0004)) && !hit(Destination::Logical(0x0001_0008)));
}

#[test]
fn lowest_priority_goes_to_the_least_busy() {
    let mut apics = [apic(0), apic(1), apic(2)];
    apics[0].set_task_priority(0x20);
    apics[2].set_task_priority(0x10);
    deliver(&mut apics[..], message(Mode::LowestPriority, 0x41, Destination::Physical(0xff)));
    assert_eq!(apics.iter().map(LocalApic::interrupt).collect::<Vec<_>>(), [None, Some(0x41), None]);
}

#[test]
fn init_and_start_up_wait_in_order() {
    let mut apic = apic(1);
    apic.accept(Mode::StartUp, 0x10, Trigger::Edge);
    apic.accept(Mode::Init, 0, Trigger::Edge);
    assert_eq!(
        apic.signals(),
        Signals { init: true, ..Signals::default() },
        "INIT drops the earlier start-up"
    );
    apic.accept(Mode::StartUp, 0x9a, Trigger::Edge);
    assert_eq!(apic.take_signals(), Signals { nmi: false, init: true, start_up: Some(0x9a) });
    assert!(!apic.signals().any());
}

#[test]
fn init_keeps_id_and_mode() {
    let mut apic = in_x2apic_mode(3);
    apic.set_task_priority(0x50);
    apic.init();
    assert_eq!(apic.base().state(), State::X2Apic);
    assert_eq!(apic.read_msr(0x802, 0), Ok(3));
    assert_eq!(apic.read_msr(0x80d, 0), Ok(1 << 3));
    assert_eq!((apic.task_priority(), apic.read_msr(0x80f, 0)), (0, Ok(0xff)));
}

#[test]
fn x2apic_registers_by_msr() {
    let mut apic = in_x2apic_mode(0x23);
    assert_eq!(apic.read_msr(0x802, 0), Ok(0x23));
    assert_eq!(apic.read_msr(0x80d, 0), Ok(0x0002_0008));
    assert_eq!(apic.write_msr(0x80b, 0, 0, 0), Ok(Effect::None));
    let sent = apic.write_msr(0x830, 0x0000_0005_0000_4041, 0, 0);
    assert_eq!(sent, Ok(Effect::Send(message(Mode::Fixed, 0x41, Destination::Physical(5)))));
    assert_eq!(apic.read_msr(0x830, 0), Ok(0x0000_0005_0000_4041));
    let sent = apic.write_msr(0x83f, 0x55, 4, 0);
    assert_eq!(sent, Ok(Effect::Send(message(Mode::Fixed, 0x55, Destination::Processor(4)))));
}

#[test]
fn x2apic_accesses_that_fault() {
    let mut apic = in_x2apic_mode(0);
    for msr in [0x800, 0x801, 0x80b, 0x80e, 0x809, 0x831, 0x83f, 0x840, 0x8ff, 0x7ff] {
        assert_eq!(apic.read_msr(msr, 0), Err(GeneralProtection), "read {msr:#x}");
    }
    for (msr, value) in
        [(0x802, 0), (0x80d, 0), (0x808, 0x100), (0x80b, 1), (0x828, 1), (0x83f, 0x100), (0x839, 0)]
    {
        assert_eq!(apic.write_msr(msr, value, 0, 0), Err(GeneralProtection), "write {msr:#x}");
    }
    let mut apic = self::apic(0);
    assert_eq!(apic.read_msr(0x802, 0), Err(GeneralProtection), "in xAPIC mode");
}

#[test]
fn memory_decodes_in_xapic_mode_only() {
    assert!(apic(0).decodes(0xfee0_0ff0) && !apic(0).decodes(0xfee0_1000));
    assert!(!in_x2apic_mode(0).decodes(0xfee0_0000));
    let mut moved = apic(0);
    moved.set_base(0xfed0_0000 | 1 << 11).expect("a transition that exists");
    assert!(moved.decodes(0xfed0_0020) && !moved.decodes(0xfee0_0020));
}

#[test]
fn disabling_resets() {
    let mut apic = apic(0);
    request(&mut apic, 0x40);
    apic.set_base(0xfee0_0100).expect("a transition that exists");
    assert_eq!(apic.interrupt(), None);
    request(&mut apic, 0x40);
    apic.set_base(0xfee0_0900).expect("a transition that exists");
    assert_eq!(apic.interrupt(), None);
    assert_eq!(read(&mut apic, SVR), 0xff);
}

#[test]
fn lint0_in_fixed_mode_acts_on_the_edge() {
    let mut apic = apic(0);
    write(&mut apic, LVT_LINT0, 0x39, 0);
    apic.set_lint0(true);
    apic.set_lint0(true);
    assert_eq!(apic.acknowledge(), Some(0x39));
    assert_eq!(apic.acknowledge(), None);
    assert!(!apic.passes_external_interrupts());
    write(&mut apic, LVT_LINT0, 0x700, 0);
    assert!(apic.passes_external_interrupts());
}

#[test]
fn odd_memory_accesses_are_harmless() {
    let mut apic = apic(1);
    assert_eq!(apic.read_memory(0x23, 1, 0), 1);
    assert_eq!(apic.read_memory(0x24, 4, 0), 0);
    for offset in 0..SIZE {
        for size in [1, 2, 4, 8] {
            apic.read_memory(offset, size, 5);
            let _ = apic.write_memory(offset, size, u64::MAX, 0, 5);
        }
    }
    apic.tick(u64::MAX);
    assert_eq!(apic.next_event(), None);
}
