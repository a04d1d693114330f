"use client";

import Link from "next/link";
import { useTallymark } from "tallymark/react";

export default function Page() {
  const tracker = useTallymark();
  return (
    <>
      <button id="tea" data-tallymark-click="tea" onClick={() => tracker.track("bought", { what: "tea" })}>
        tea
      </button>
      <Link id="about" href="/about">
        About
      </Link>
    </>
  );
}
