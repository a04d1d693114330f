// What the types allow and what they do not. Compiled by tsc, never run.

import { createRecordingTracker } from "../src/testing.js";
import "../src/window.js";
import { createTracker, type Options, type Status, type Tracker } from "../src/index.js";

const options: Options = { endpoint: "/", username: "shop", key: "k" };

const any = createTracker(options);
any.track("anything");
any.track("anything", { at: ["all", 1, null, { deep: true }] });
any.pageView();
any.pageView({ url: "/tea", referralUrl: "https://search.example/", title: "Tea", properties: { variant: "b" } });
any.click("buy", { price: 2.4 });
any.flush();
const status: Status = any.status();
const dropped: number | undefined = status.dropped.queue_full;
const paused: "unauthorized" | "forbidden" | "redirected" | "offline" | "blocked" | null = status.paused;
const disabledReason: "disabled" | "opted_out" | "gpc" | "dnt" | "denied" | null = status.disabledReason;

export { disabledReason, dropped, paused };

any.identify("u-1");
any.identify(null);
any.setConsent("granted");
any.optOut();
any.optIn();
createTracker({
  ...options,
  consent: "pending",
  sampleRate: 0.1,
  hash: true,
  beforeSend(event) {
    if (event.event_type === "page_view" && event.url?.includes("/secret")) return null;
    return { ...event, title: undefined };
  },
});
// Whoever only changes the event must still give it back.
createTracker({ ...options, beforeSend: () => {} });
// @ts-expect-error not something a visitor can decide
any.setConsent("maybe");

// @ts-expect-error a key is needed
createTracker({ endpoint: "/", username: "shop" });
// @ts-expect-error an option that there is not
createTracker({ ...options, pageviews: false });
// @ts-expect-error a name is text
any.track(7);
// @ts-expect-error properties are an object
any.track("charge", 100);
// @ts-expect-error a button has a name
any.click();
// @ts-expect-error not a field of a view
any.pageView({ referrer: "https://search.example/" });

interface Charge {
  value: number;
  currency?: string;
}
type Events = { charge: Charge; signed_up: undefined; searched: { text: string } | undefined };
const typed: Tracker<Events> = createTracker<Events>(options);
const charge: Charge = { value: 100 };
typed.track("charge", charge);
typed.track("signed_up");
typed.track("searched");
typed.track("searched", { text: "tea" });

// @ts-expect-error not an event of this site
typed.track("charged", { value: 100 });
// @ts-expect-error a charge has properties
typed.track("charge");
// @ts-expect-error the value is a number
typed.track("charge", { value: "100" });
// @ts-expect-error not a property of a charge
typed.track("charge", { value: 100, tip: 1 });
// @ts-expect-error signing up has none
typed.track("signed_up", { at: 1 });

window.tallymark?.track("anything");
// @ts-expect-error not a method of a tracker
window.tallymark?.count();
any.identify(42);
// @ts-expect-error not an id
any.identify({});
createTracker({ ...options, credentials: "same-origin", disabled: true });
const recording = createRecordingTracker<Events>();
recording.track("charge", { value: 1 });
export const recorded: string | undefined = recording.events[0].name;
// @ts-expect-error not an event of this site
recording.track("charged");
