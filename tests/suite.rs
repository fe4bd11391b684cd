//! The runtime's behaviour, counted: polls, drops, wakes, allocations, and traces of events where order
//! is the promise. The same program is a test of the host and a test kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

#[path = "suite/errors.rs"]
mod errors;
#[path = "suite/registers.rs"]
mod registers;
#[path = "suite/smp.rs"]
mod smp;
#[path = "suite/stacks.rs"]
mod stacks;
#[path = "suite/support.rs"]
mod support;
#[path = "suite/tasks.rs"]
mod tasks;
#[path = "suite/time.rs"]
mod time;

hal_shim::entry!(unsafe program);

/// Lists functions under their names.
macro_rules! tests {
    ($($module:ident :: $name:ident,)*) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn())),*]
    };
}

fn program() {
    hal_shim::test::run(tests![
        tasks::spawned_task_is_polled_dropped_and_freed_once,
        tasks::tasks_run_in_the_order_of_their_wakes,
        tasks::wake_during_the_poll_polls_again,
        tasks::many_wakes_make_one_poll,
        tasks::wake_after_completion_does_nothing,
        tasks::waker_may_outlive_task_and_runtime,
        tasks::last_waker_dropped_in_an_interrupt_frees_nothing_there,
        tasks::join_gives_the_output,
        tasks::output_of_a_detached_task_is_dropped,
        tasks::output_nobody_took_is_dropped_with_the_handle,
        tasks::abort_of_a_queued_task,
        tasks::abort_before_the_runtime_is_entered,
        tasks::abort_of_a_blocked_task,
        tasks::abort_of_itself,
        tasks::abort_of_a_finished_task,
        tasks::join_handle_polled_by_one_task_after_another,
        tasks::a_task_that_wakes_itself_starves_nobody,
        tasks::current_names_the_task,
        tasks::run_until_leaves_the_others_where_they_are,
        tasks::run_until_may_borrow,
        tasks::wake_in_an_interrupt,
        tasks::a_task_spawned_after_an_interrupts_wake_runs,
        stacks::hog_is_preempted,
        stacks::hogs_take_turns,
        stacks::slice_of_a_hog_is_kept,
        stacks::interrupts_wake_preempts_at_once,
        stacks::timer_preempts_at_once,
        stacks::own_wake_preempts_nobody,
        stacks::wake_while_preempted_is_kept,
        stacks::timeout_around_a_hog,
        stacks::select_beside_block_on_loses_nothing,
        stacks::abort_in_mid_poll_ends_with_the_poll,
        stacks::ten_thousand_blocked_tasks_hold_no_stack,
        stacks::exhausted_pool_makes_tasks_wait_and_reports,
        stacks::preempted_task_gets_its_turn_among_busy_ones,
        stacks::preempted_task_gets_its_turn_among_stackful_ones,
        stacks::sleep_in_a_stackful_task_is_its_only_alarm,
        stacks::guard_owes_the_slice,
        stacks::hog_that_is_full_of_guards_is_preempted,
        stacks::shortest_slices_get_on,
        stacks::nested_block_on_outside_of_tasks_gives_wakes_back,
        stacks::a_stall_can_be_ended_by_its_report,
        stacks::an_aborted_waiter_does_not_keep_the_next_from_its_stack,
        stacks::stackful_inside_of_stackful,
        stacks::dropped_parent_aborts_its_child,
        stacks::wakes_from_stacks_arrive,
        stacks::block_on_outside_of_tasks_parks,
        registers::survive_a_hundred_thousand_preemptions,
        time::sleepers_wake_in_the_order_of_their_deadlines,
        time::sleep_never_ends_early,
        time::timeout_gives_the_output_or_gives_up,
        time::dropped_sleep_wakes_nobody,
        time::timer_that_comes_due_outside_fires_inside,
        time::many_sleepers,
        smp::spawn_from_another_core,
        smp::wakes_back_and_forth,
        smp::wake_from_another_core_preempts_at_once,
        smp::parked_core_is_woken,
        smp::two_cores_cannot_enter_one_runtime,
        smp::sleep_moved_to_another_core,
        errors::nested_runtimes,
        errors::zero_slice_or_nearly,
        errors::stack_that_holds_no_context,
        errors::no_stacks_at_all,
        errors::memory_out_at_spawn_gives_the_future_back,
        errors::memory_out_for_a_child,
        errors::memory_out_for_a_stack_waits,
        errors::spawn_outside_of_a_runtime,
        errors::nothing_runs_after_a_shutdown,
        errors::shutdown_inside_of_the_runtime,
        errors::shutdown_with_tasks_in_every_state,
        errors::no_such_core,
    ])
}
