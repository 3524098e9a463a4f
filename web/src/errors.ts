// Errors that a user can understand: one line that says what was wrong and where.

/** Bytes that are not a well-formed message. */
export class MessageError extends Error {
  override name = "MessageError";
}

/** A program that this worker does not run. */
export class ProgramError extends Error {
  override name = "ProgramError";
}

/** A task that cannot be done: its numbers are no numbers any more, or its data do not fit. */
export class KernelError extends Error {
  override name = "KernelError";
}

/** The text of anything that was thrown. */
export function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
