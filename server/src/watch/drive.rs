//! Drives a hub on its network thread.

use super::hub::Hub;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Slices of history read per trip to the blocking threads.
const SLICES_PER_TRIP: usize = 16;

/// Runs a hub: hands out what is published, sends progress notifications, and reads history on the
/// runtime's blocking threads. Runs until dropped; spawn it on the thread whose streams the hub has.
pub async fn drive(hub: Arc<Hub>, engine: engine::Engine) {
    let history = read_history(hub.clone(), engine);
    tokio::select! {
        biased;
        () = hand_out(hub) => {}
        () = history => {}
    }
}

async fn hand_out(hub: Arc<Hub>) {
    loop {
        let more = hub.pump();
        let next = hub.tick(Instant::now().into_std());
        if more {
            // Streams drain between the steps, so that a burst does not overflow them.
            tokio::task::yield_now().await;
            continue;
        }
        let sleep = match next {
            Some(due) => due.saturating_duration_since(Instant::now().into_std()),
            None => Duration::from_secs(3600),
        };
        tokio::select! {
            biased;
            () = hub.wait() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

async fn read_history(hub: Arc<Hub>, engine: engine::Engine) {
    loop {
        hub.wait_history().await;
        let mut more = true;
        while more {
            let (hub, engine) = (hub.clone(), engine.clone());
            let trip = move || (0..SLICES_PER_TRIP).all(|_| hub.catch_up(|| engine.view()));
            more = match tokio::task::spawn_blocking(trip).await {
                Ok(more) => more,
                Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
                Err(_) => return,
            };
        }
    }
}
