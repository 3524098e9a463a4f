import { build } from "vite";

/** Build the page and the page of the tests, once for all of them. */
export default async function setup(): Promise<void> {
  await build({ mode: "test", logLevel: "warn" });
}
