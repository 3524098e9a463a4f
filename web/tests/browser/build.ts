import { join } from "node:path";
import { build } from "vite";

/** Where the built page is: beside the cases where there are some, as both projects may run at the same time. */
export const PAGE = process.env.COVERAGE ? join(process.env.COVERAGE, "page") : "dist-test";

/** Build the page and the page of the tests, once for all of them. */
export default async function setup(): Promise<void> {
  await build({ mode: "test", logLevel: "warn", build: { outDir: PAGE, emptyOutDir: true } });
}
