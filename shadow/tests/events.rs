//! Events around L2: none is lost, each is taken in its order, and L1 sees what it asked to see.

mod world;

use shadow::{Decision, L2Exit, Pending, Taken, Task};
use vmcs12::arch::event::{EventKind, Exception, InjectedEvent, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::state::{Activity, InterruptibilityState};
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::table::*;
use world::*;

const NOTHING: Pending = Pending { init: false, nmi: false, interrupt: None };
const INTERRUPT: Pending = Pending { interrupt: Some(0x41), ..NOTHING };
const NMI: Pending = Pending { nmi: true, ..NOTHING };

fn blocking(bits: u32) -> InterruptibilityState {
    InterruptibilityState(bits)
}

#[test]
fn with_nothing_waiting_l2_is_entered() {
    assert_eq!(World::in_l2().before_entry(NOTHING), Decision::Enter(Taken::Nothing));
}

#[test]
fn an_interrupt_for_l1_is_exit_1_and_goes_on_waiting() {
    let mut world = World::in_l2();
    assert_eq!(world.before_entry(INTERRUPT), Decision::Reflected(Taken::Nothing));
    assert_eq!(world.vmcs12().get(EXIT_REASON), 1);
    assert_eq!(world.vmcs12().get(EXITING_EVENT_IDENTIFICATION), RecordedEvent::default());
    assert_eq!(world.get01(GUEST_RIP), HOST_RIP_12);
}

#[test]
fn with_acknowledgement_the_vector_is_recorded() {
    let mut world =
        World::in_l2_with(|world| world.vmcs12().set_control(ACKNOWLEDGE_INTERRUPT_ON_EXIT, true));
    assert_eq!(world.before_entry(INTERRUPT), Decision::Reflected(Taken::Interrupt));
    let event = world.vmcs12().get(EXITING_EVENT_IDENTIFICATION);
    assert_eq!(event, RecordedEvent::new(EventKind::ExternalInterrupt, 0x41, false));
}

#[test]
fn an_event_that_l1_injects_is_delivered_before_an_exit_is_made() {
    let mut world = World::in_l2_with(|world| {
        let event = InjectedEvent::new(EventKind::HardwareException, vector::UD, false);
        world.vmcs12().set(INJECTED_EVENT_IDENTIFICATION, event);
    });
    assert_eq!(world.before_entry(INTERRUPT), Decision::Deliver);
    assert_eq!(world.before_entry(NOTHING), Decision::Enter(Taken::Nothing));
}

#[test]
fn without_external_interrupt_exiting_l2_gets_the_interrupt() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(EXTERNAL_INTERRUPT_EXITING, false);
        world.vmcs12().set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    });
    assert!(world.vmcs02().has(EXTERNAL_INTERRUPT_EXITING), "L0's");
    assert_eq!(world.before_entry(INTERRUPT), Decision::Enter(Taken::Interrupt));
    let injected = world.vmcs02().get(INJECTED_EVENT_IDENTIFICATION);
    assert_eq!(injected, InjectedEvent::new(EventKind::ExternalInterrupt, 0x41, false));
}

#[test]
fn an_interrupt_that_l2_cannot_take_opens_a_window_of_l0s() {
    let mut world = World::in_l2_with(|world| world.vmcs12().set_control(EXTERNAL_INTERRUPT_EXITING, false));
    assert_eq!(world.before_entry(INTERRUPT), Decision::Enter(Taken::Nothing));
    assert!(world.vmcs02().has(INTERRUPT_WINDOW_EXITING));
    world.vmcs02().set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    assert_eq!(world.exit(Reason::InterruptWindow, |_| {}), L2Exit::Resumed);
    assert_eq!(world.before_entry(INTERRUPT), Decision::Enter(Taken::Interrupt));
    assert!(!world.vmcs02().has(INTERRUPT_WINDOW_EXITING));
}

#[test]
fn an_interrupt_window_of_l1s_comes_before_the_interrupt() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(INTERRUPT_WINDOW_EXITING, true);
        world.vmcs12().set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    });
    assert_eq!(world.before_entry(INTERRUPT), Decision::Enter(Taken::Nothing));
    assert_eq!(world.exit(Reason::InterruptWindow, |_| {}), L2Exit::Reflected);
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(INTERRUPT_WINDOW_EXITING, true);
    });
    assert_eq!(world.before_entry(INTERRUPT), Decision::Reflected(Taken::Nothing), "the window is shut");
}

#[test]
fn an_nmi_for_l1_is_exit_0_and_blocks_nmis_in_l1() {
    let mut world = World::in_l2();
    assert_eq!(world.before_entry(NMI), Decision::Reflected(Taken::Nmi));
    assert_eq!(world.vmcs12().get(EXIT_REASON), 0);
    let event = world.vmcs12().get(EXITING_EVENT_IDENTIFICATION);
    assert_eq!(event, RecordedEvent::new(EventKind::Nmi, vector::NMI, false));
    assert_eq!(world.get01(GUEST_INTERRUPTIBILITY_STATE), blocking(8));
    assert_eq!(world.vmcs12().get(GUEST_INTERRUPTIBILITY_STATE), blocking(0));
}

#[test]
fn an_nmi_comes_before_an_interrupt_and_init_before_both() {
    let mut world = World::in_l2();
    assert_eq!(world.before_entry(Pending { nmi: true, ..INTERRUPT }), Decision::Reflected(Taken::Nmi));
    let mut world = World::in_l2();
    let all = Pending { nmi: true, init: true, ..INTERRUPT };
    assert_eq!(world.before_entry(all), Decision::Reflected(Taken::Init));
    assert_eq!(world.vmcs12().get(EXIT_REASON), 3);
}

#[test]
fn blocking_by_nmi_stops_an_nmi_exit_only_without_virtual_nmis() {
    for (virtual_nmis, decision) in
        [(false, Decision::Enter(Taken::Nothing)), (true, Decision::Reflected(Taken::Nmi))]
    {
        let mut world = World::in_l2_with(|world| {
            world.vmcs12().set_control(VIRTUAL_NMIS, virtual_nmis);
            world.vmcs12().set(GUEST_INTERRUPTIBILITY_STATE, blocking(8));
        });
        assert_eq!(world.before_entry(NMI), decision);
    }
}

#[test]
fn without_nmi_exiting_l2_gets_the_nmi() {
    let mut world = World::in_l2_with(|world| world.vmcs12().set_control(NMI_EXITING, false));
    assert_eq!(world.before_entry(NMI), Decision::Enter(Taken::Nmi));
    let injected = world.vmcs02().get(INJECTED_EVENT_IDENTIFICATION);
    assert_eq!(injected, InjectedEvent::new(EventKind::Nmi, vector::NMI, false));
}

#[test]
fn an_expired_timer_comes_before_an_interrupt() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(ACTIVATE_VMX_PREEMPTION_TIMER, true);
        world.vmcs12().set(VMX_PREEMPTION_TIMER_VALUE, 0);
    });
    assert_eq!(world.before_entry(INTERRUPT), Decision::Enter(Taken::Nothing));
    assert_eq!(world.exit(Reason::VmxPreemptionTimerExpired, |_| {}), L2Exit::Reflected);
}

#[test]
fn a_halt_that_l1_does_not_intercept_waits_for_an_event() {
    let mut world = World::in_l2_with(|world| world.vmcs12().set_control(HLT_EXITING, false));
    assert_eq!(world.exit(Reason::Hlt, |_| {}), L2Exit::L0(Task::Halt));
    assert_eq!(world.vmcs02().get(GUEST_RIP), L2_RIP + 2);
    assert_eq!(world.before_entry(NOTHING), Decision::Halted);
    assert_eq!(world.before_entry(INTERRUPT), Decision::Reflected(Taken::Nothing));
    assert_eq!(world.vmcs12().get(GUEST_ACTIVITY_STATE), Activity::Hlt as u32);
    assert_eq!(world.get01(GUEST_ACTIVITY_STATE), Activity::Active as u32);
}

#[test]
fn an_injected_event_wakes_a_halted_l2() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(EXTERNAL_INTERRUPT_EXITING, false);
        world.vmcs12().set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
        world.vmcs12().set(GUEST_ACTIVITY_STATE, Activity::Hlt as u32);
    });
    assert_eq!(world.before_entry(INTERRUPT), Decision::Enter(Taken::Interrupt));
    assert_eq!(world.vmcs02().get(GUEST_ACTIVITY_STATE), Activity::Active as u32);
}

#[test]
fn in_shutdown_interrupts_wait() {
    let mut world =
        World::in_l2_with(|world| world.vmcs12().set(GUEST_ACTIVITY_STATE, Activity::Shutdown as u32));
    assert_eq!(world.before_entry(INTERRUPT), Decision::Halted);
    assert_eq!(world.before_entry(NMI), Decision::Reflected(Taken::Nmi));
}

#[test]
fn in_wait_for_sipi_nothing_but_a_sipi_is_taken() {
    let mut world =
        World::in_l2_with(|world| world.vmcs12().set(GUEST_ACTIVITY_STATE, Activity::WaitForSipi as u32));
    let all = Pending { nmi: true, init: true, ..INTERRUPT };
    assert_eq!(world.before_entry(all), Decision::Halted);
}

#[test]
fn windows_of_l1s_wake_a_halted_l2() {
    let rows = [(INTERRUPT_WINDOW_EXITING, Reason::InterruptWindow), (NMI_WINDOW_EXITING, Reason::NmiWindow)];
    for (control, reason) in rows {
        let mut world = World::in_l2_with(|world| {
            world.vmcs12().set_control(VIRTUAL_NMIS, true);
            world.vmcs12().set_control(control, true);
            world.vmcs12().set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
            world.vmcs12().set(GUEST_ACTIVITY_STATE, Activity::Hlt as u32);
        });
        assert_eq!(world.before_entry(NOTHING), Decision::Reflected(Taken::Nothing));
        assert_eq!(world.vmcs12().get(EXIT_REASON), reason as u32);
    }
}

#[test]
fn the_timer_counts_while_l2_is_halted_and_wakes_it() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(ACTIVATE_VMX_PREEMPTION_TIMER, true);
        world.vmcs12().set_control(SAVE_VMX_PREEMPTION_TIMER_VALUE, true);
        world.vmcs12().set(VMX_PREEMPTION_TIMER_VALUE, 100);
        world.vmcs12().set(GUEST_ACTIVITY_STATE, Activity::Hlt as u32);
    });
    let start = world.tsc;
    let rate = 5;
    assert_eq!(world.before_entry(NOTHING), Decision::Halted);
    assert_eq!(world.engine.halted_until(), Some(start + (100 << rate)));
    world.tsc = start + (40 << rate) + 7;
    assert_eq!(world.before_entry(NOTHING), Decision::Halted);
    assert_eq!(world.vmcs02().get(VMX_PREEMPTION_TIMER_VALUE), 60);
    assert_eq!(world.engine.halted_until(), Some(start + (100 << rate)));
    world.tsc = start + (100 << rate);
    assert_eq!(world.before_entry(NOTHING), Decision::Reflected(Taken::Nothing));
    assert_eq!(world.vmcs12().get(EXIT_REASON), 52);
    assert_eq!(world.vmcs12().get(VMX_PREEMPTION_TIMER_VALUE), 0);
    world.vmcs12().set(VMX_PREEMPTION_TIMER_VALUE, 100);
    world.tsc += 50 << rate;
    assert_eq!(world.instruction(Reason::Vmresume), shadow::Outcome::Entered);
    assert_eq!(world.before_entry(NOTHING), Decision::Halted);
    assert_eq!(world.vmcs02().get(VMX_PREEMPTION_TIMER_VALUE), 100, "L1's own time does not count");
}

/// L0 fills ept02 while an event is being delivered.
fn fill_during(original: RecordedEvent, length: u32) -> World {
    let mut world = World::in_l2_with(|world| {
        world.enable_ept12();
    });
    let exit = world.exit(Reason::EptViolation, |vmcs02| {
        vmcs02.set(GUEST_PHYSICAL_ADDRESS, 0x5000);
        vmcs02.set(EXIT_QUALIFICATION, 1);
        vmcs02.set(ORIGINAL_EVENT_IDENTIFICATION, original);
        vmcs02.set(ORIGINAL_EVENT_ERROR_CODE, 0x18);
        vmcs02.set(VM_EXIT_INSTRUCTION_LENGTH, length);
        vmcs02.set(GUEST_INTERRUPTIBILITY_STATE, blocking(8));
    });
    assert_eq!(exit, L2Exit::Resumed);
    world
}

#[test]
fn an_event_that_l0_cut_short_is_injected_again() {
    let events = [
        (EventKind::ExternalInterrupt, 0x31, false),
        (EventKind::HardwareException, vector::PF, true),
        (EventKind::SoftwareInterrupt, 0x80, false),
        (EventKind::SoftwareException, vector::BP, false),
    ];
    for (kind, vector, has_code) in events {
        let mut world = fill_during(RecordedEvent::new(kind, vector, has_code), 2);
        let vmcs02 = world.vmcs02();
        let injected = vmcs02.get(INJECTED_EVENT_IDENTIFICATION);
        assert_eq!(injected, InjectedEvent::new(kind, vector, has_code));
        assert_eq!(vmcs02.get(INJECTED_EVENT_ERROR_CODE), 0x18);
        assert_eq!(vmcs02.get(VM_ENTRY_INSTRUCTION_LENGTH), 2);
        assert_eq!(vmcs02.get(GUEST_INTERRUPTIBILITY_STATE), blocking(8));
    }
}

#[test]
fn an_nmi_that_is_injected_again_does_not_find_itself_blocked() {
    let mut world = fill_during(RecordedEvent::new(EventKind::Nmi, vector::NMI, false), 0);
    assert_eq!(world.vmcs02().get(GUEST_INTERRUPTIBILITY_STATE), blocking(0));
}

#[test]
fn an_iret_that_l0_cut_short_finds_nmis_blocked_again() {
    let mut world = World::in_l2_with(|world| {
        world.enable_ept12();
    });
    let exit = world.exit(Reason::EptViolation, |vmcs02| {
        vmcs02.set(GUEST_PHYSICAL_ADDRESS, 0x5000);
        vmcs02.set(EXIT_QUALIFICATION, 1 | 1 << 12);
    });
    assert_eq!(exit, L2Exit::Resumed);
    assert_eq!(world.vmcs02().get(GUEST_INTERRUPTIBILITY_STATE), blocking(8));
}

#[test]
fn an_exception_that_l0_raises_is_l1s_or_l2s() {
    let mut world = World::in_l2_with(|world| world.vmcs12().set(EXCEPTION_BITMAP, 1 << vector::GP));
    assert_eq!(world.raise(Exception::gp(0)), L2Exit::Reflected);
    let event = world.vmcs12().get(EXITING_EVENT_IDENTIFICATION);
    assert_eq!(event, RecordedEvent::new(EventKind::HardwareException, vector::GP, true));
    let mut world = World::in_l2();
    assert_eq!(world.raise(Exception::pf(0x1234, 2)), L2Exit::Resumed);
    let injected = world.vmcs02().get(INJECTED_EVENT_IDENTIFICATION);
    assert_eq!(injected, InjectedEvent::new(EventKind::HardwareException, vector::PF, true));
    assert_eq!((world.vmcs02().get(INJECTED_EVENT_ERROR_CODE), world.state.cr2), (2, 0x1234));
}

#[test]
fn a_page_fault_that_l1_intercepts_has_its_address_in_the_qualification() {
    let mut world = World::in_l2_with(|world| world.vmcs12().set(EXCEPTION_BITMAP, 1 << vector::PF));
    world.state.cr2 = 1;
    assert_eq!(world.raise(Exception::pf(0x1234, 2)), L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), 0x1234);
    assert_eq!(world.vmcs12().get(EXITING_EVENT_ERROR_CODE), 2);
    assert_eq!(world.state.cr2, 1, "CR2 is written when the exception is delivered");
}

/// A profile whose timer counts four times slower than the machine's.
fn slow_timer(value: u32) -> World {
    let mut caps = offered();
    caps.misc = caps.misc.with(vmcs12::caps::VmxMisc::PREEMPTION_TIMER_RATE, 7);
    let mut world = World::new(caps);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), shadow::Outcome::Completed);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), shadow::Outcome::Completed);
    fill_valid(world.vmcs12());
    world.vmcs12().set_control(ACTIVATE_VMX_PREEMPTION_TIMER, true);
    world.vmcs12().set_control(SAVE_VMX_PREEMPTION_TIMER_VALUE, true);
    world.vmcs12().set(VMX_PREEMPTION_TIMER_VALUE, value);
    assert_eq!(world.instruction(Reason::Vmlaunch), shadow::Outcome::Entered);
    world
}

#[test]
fn the_timer_counts_at_the_rate_that_l1_is_told() {
    let mut world = slow_timer(100);
    assert_eq!(world.vmcs02().get(VMX_PREEMPTION_TIMER_VALUE), 400);
    world.vmcs02().set(VMX_PREEMPTION_TIMER_VALUE, 120);
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(VMX_PREEMPTION_TIMER_VALUE), 30);
}

#[test]
fn a_timer_that_does_not_fit_goes_on() {
    let mut world = slow_timer(u32::MAX);
    let expire = |world: &mut World| {
        world.exit(Reason::VmxPreemptionTimerExpired, |vmcs02| vmcs02.set(VMX_PREEMPTION_TIMER_VALUE, 0))
    };
    for _ in 0..3 {
        assert_eq!(world.vmcs02().get(VMX_PREEMPTION_TIMER_VALUE), u32::MAX);
        assert_eq!(expire(&mut world), L2Exit::Resumed);
    }
    assert_eq!(expire(&mut world), L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(VMX_PREEMPTION_TIMER_VALUE), 0);
}
