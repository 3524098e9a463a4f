// What a page and its worker say to each other.

import type { Wanted } from "./choose";
import type { Evaluation } from "./kernel";
import type { Backend } from "./runtime";

type Bytes = Uint8Array<ArrayBuffer>;

export type Command =
  /** Verify a program; `expected` is its name, where the page knows it. */
  | { kind: "open"; files: Map<string, Bytes>; expected?: string; wanted?: Wanted; threads?: number }
  /** Do a task; both files as they came over the wire, the shard verified against the task. */
  | { kind: "run"; task: Bytes; shard: Bytes }
  /** Measure the vector of a task's file on a data set's file. */
  | { kind: "evaluate"; task: Bytes; data: Bytes }
  /** End the task in hand early: with an answer where the task welcomes a partial one. */
  | { kind: "stop" };

export type Answer =
  | { kind: "opened"; id: string; name: string; parameters: number }
  | { kind: "chosen"; backend: Backend; threads: number; why: string }
  | { kind: "progress"; steps: number; of: number; loss: number; seconds: number }
  /** A task's answer, as the coordinator wants it: a message with tensors. */
  | { kind: "done"; report: Bytes; stepsPerSecond: number }
  | { kind: "evaluated"; evaluation: Evaluation }
  /** One line that says why a command was not done. */
  | { kind: "failed"; reason: string };
