//! An async job: fetches the pages `/0`, `/1`, … of a server, 64 at a time on each slot, and counts
//! their bytes.
//!
//! ```text
//! cargo run --release --example fetch -- run fetch --server 127.0.0.1:8080 --pages 10000
//! ```

use std::process::ExitCode;

use gristmill::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Fetch the pages of a server and count their bytes
#[derive(Debug, Serialize, Deserialize, clap::Args)]
struct Fetch {
    /// The server, as HOST:PORT; plain HTTP
    #[arg(long)]
    server: String,
    /// The number of pages
    #[arg(long)]
    pages: u64,
}

impl Job for Fetch {
    const KIND: &'static str = "fetch";
    const IN_FLIGHT: u32 = 64;
    type Task = u64;
    type Output = u64;
    type Report = (u64, u64); // pages and bytes

    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::of(self.pages).unit("pages"))
    }

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..self.pages).map(Ok)
    }

    async fn process_async(&self, page: u64, _: &TaskContext) -> Result<u64, TaskError> {
        let mut stream = TcpStream::connect(&self.server).await?;
        let request = format!("GET /{page} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.server);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return Err(TaskError::failed("the server closed the connection within the head of its answer"));
        };
        match head.split_whitespace().nth(1) {
            Some("200") => Ok(body.len() as u64),
            Some("404" | "410") => Err(TaskError::reject(format_args!("there is no page {page}"))),
            _ => Err(TaskError::failed(format_args!("the server answered {head:?}"))), // tried again
        }
    }

    fn collect(&self, report: &mut (u64, u64), _: TaskIndex, bytes: u64) -> ControlFlow<()> {
        *report = (report.0 + 1, report.1 + bytes);
        ControlFlow::Continue(())
    }

    fn conclude(&self, (pages, bytes): &(u64, u64), account: &Account) -> Conclusion {
        Conclusion::if_complete(format!("{pages} pages, {bytes} bytes"), account)
    }
}

fn main() -> ExitCode {
    gristmill::App::new().job::<Fetch>().main()
}
