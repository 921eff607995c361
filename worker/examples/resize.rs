//! A program of one's own as a worker: it brings one handler, and runs no commands.
//!
//! ```sh
//! cargo run -p hostler-worker --example resize -- 127.0.0.1:7441 .hostler/worker.token
//! curl -d '{"handler": "resize", "payload": {"path": "cat.png", "width": 640}}' …/jobs
//! ```

use std::process::ExitCode;
use std::time::Duration;

use hostler_worker::{HandlerError, Job, Worker};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(server), Some(token_file)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: resize HOST:PORT TOKEN_FILE");
        return ExitCode::from(2);
    };
    let token = match std::fs::read_to_string(&token_file) {
        Ok(token) => token,
        Err(error) => {
            eprintln!("{token_file}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let worker = Worker::connect([server])
        .token(&token)
        .name("resizer")
        .slots(4);
    match worker.handler("resize", resize).run() {
        Ok(exit) => {
            eprintln!("{exit:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Pretends to resize a picture, step by step.
fn resize(job: &Job) -> Result<Value, HandlerError> {
    let payload = job.json()?;
    let path = payload["path"]
        .as_str()
        .ok_or_else(|| HandlerError::fatal("path is missing"))?;
    let width = payload["width"].as_u64().unwrap_or(640);
    for (step, done) in [("reading", 0.0), ("scaling", 0.3), ("writing", 0.8)] {
        job.progress(done, step);
        // In place of the work: what can be interrupted, should be.
        if job.wait_cancelled(Duration::from_millis(200)) {
            return Err(HandlerError::new(format!("stopped while {step}")));
        }
    }
    Ok(json!({"path": path, "width": width}))
}
