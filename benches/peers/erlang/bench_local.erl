%% Erlang's contestant: obeys the same lines as the others (src/contestant.rs). `otp`: a gen_server under a supervisor. `process`: a
%% bare process, and whoever asked starts it again.
-module(bench_local).
-export([main/0, counter/1, init/1, handle_call/3, handle_cast/2]).

-define(BURST, 1000).
-define(WORKERS, 10).

main() ->
    logger:set_primary_config(level, none),
    [How] = init:get_plain_arguments(),
    spawn_opt(fun() -> run(list_to_atom(How)) end, [{scheduler, 1}]).

run(How) ->
    process_flag(trap_exit, true),
    try loop(How, none, none) catch _:Reason:Where -> io:format("error ~0p at ~0p~n", [Reason, Where]), halt(1) end.

loop(How, Prepared, Kept) ->
    case io:get_line("") of
        eof -> halt(0);
        {error, _} -> halt(1);
        Line ->
            case string:lexemes(string:trim(Line), " ") of
                ["prepare", Operation, Size] ->
                    {Online, Same} = case lists:suffix("-other", Operation) of true -> {2, 2}; false -> {1, 1} end,
                    erlang:system_flag(schedulers_online, Online),
                    case prepare(How, Operation, list_to_integer(Size), Same) of
                        unsupported -> io:format("unsupported~n"), loop(How, none, Kept);
                        Round -> io:format("ready~n"), loop(How, Round, Kept)
                    end;
                ["go"] ->
                    Begun = erlang:monotonic_time(nanosecond),
                    {Operations, Further, Keep} = Prepared(),
                    Wall = erlang:monotonic_time(nanosecond) - Begun,
                    io:format("done ~b ~b~s~n", [Operations, Wall, [[" ", integer_to_list(F)] || F <- Further]]),
                    loop(How, none, Keep);
                ["clean"] ->
                    is_function(Kept) andalso Kept(),
                    io:format("cleaned~n"),
                    loop(How, none, none)
            end
    end.

%% What is measured; gives a fun that does it, and which gives {Operations, Further, Cleaner}.
prepare(How, "tell" ++ _, Bursts, Scheduler) ->
    {Counter, Clean} = one(How, Scheduler),
    fun() -> tell(How, Counter, Bursts), {Bursts * ?BURST, [], Clean} end;
prepare(How, "ask" ++ _, Asks, Scheduler) ->
    {Counter, Clean} = one(How, Scheduler),
    fun() -> ask(How, Counter, Asks), {Asks, [], Clean} end;
prepare(otp, "spawn", N, _) ->
    Top = top(none),
    fun() -> start_children(Top, N, false), {N, [], fun() -> stop(Top) end} end;
prepare(process, "spawn", N, _) ->
    fun() ->
        Counters = start_processes(N, []),
        {N, [], fun() -> [exit(Counter, kill) || Counter <- Counters] end}
    end;
prepare(otp, "memory", N, _) ->
    Top = top(none),
    fun() ->
        Before = erlang:memory(total),
        start_children(Top, N, true),
        {N, [erlang:memory(total) - Before], fun() -> Top end}
    end;
prepare(process, "memory", N, _) ->
    fun() ->
        Before = erlang:memory(total),
        start_processes_alone(N),
        {N, [erlang:memory(total) - Before], none}
    end;
prepare(otp, "restart", N, _) ->
    Top = top(self()),
    {ok, Counter} = supervisor:start_child(Top, []),
    started(1),
    fun() -> restart(otp, Counter, N), {N, [], fun() -> stop(Top) end} end;
prepare(process, "restart", N, _) ->
    fun() -> restart(process, spawn(fun() -> bare(0) end), N), {N, [], none} end;
prepare(otp, "storm", N, _) ->
    Top = top(self()),
    Counters = [begin {ok, Counter} = supervisor:start_child(Top, []), Counter end || _ <- lists:seq(1, N)],
    started(N),
    fun() ->
        [gen_server:cast(Counter, crash) || Counter <- Counters],
        started(N),
        {N, [], fun() -> stop(Top) end}
    end;
prepare(process, "storm", N, _) ->
    Self = self(),
    Counters = start_processes(N, []),
    [monitor(process, Counter) || Counter <- Counters],
    fun() ->
        [Counter ! crash || Counter <- Counters],
        New = [receive {'DOWN', _, process, _, _} -> spawn(fun() -> Self ! {started, self()}, bare(0) end) end || _ <- Counters],
        started(N),
        {N, [], fun() -> [exit(Counter, kill) || Counter <- New] end}
    end;
prepare(otp, "tree", Depth, _) ->
    {ok, Top} = supervisor:start_link(?MODULE, {level, Depth}),
    fun() -> stop(Top), {Depth * (?WORKERS + 1), [], none} end;
prepare(_, _, _, _) ->
    unsupported.

%% ---- one counter ----

one(otp, Scheduler) ->
    {ok, Counter} = gen_server:start_link(?MODULE, {counter, none}, [{spawn_opt, [{scheduler, Scheduler}]}]),
    {Counter, fun() -> gen_server:stop(Counter) end};
one(process, Scheduler) ->
    Counter = spawn_opt(fun() -> bare(0) end, [{scheduler, Scheduler}]),
    {Counter, fun() -> exit(Counter, kill) end}.

tell(_, _, 0) -> ok;
tell(How, Counter, Bursts) ->
    burst(How, Counter, ?BURST),
    sum(How, Counter),
    tell(How, Counter, Bursts - 1).

burst(_, _, 0) -> ok;
burst(otp, Counter, N) -> gen_server:cast(Counter, {add, 1}), burst(otp, Counter, N - 1);
burst(process, Counter, N) -> Counter ! {add, 1}, burst(process, Counter, N - 1).

ask(_, _, 0) -> ok;
ask(How, Counter, N) -> sum(How, Counter), ask(How, Counter, N - 1).

sum(otp, Counter) -> gen_server:call(Counter, sum);
sum(process, Counter) ->
    Ref = make_ref(),
    Counter ! {sum, self(), Ref},
    receive {Ref, Sum} -> Sum end.

bare(Sum) ->
    receive
        {add, N} -> bare(Sum + N);
        {sum, Asker, Ref} -> Asker ! {Ref, Sum}, bare(Sum);
        crash -> error(boom)
    end.

restart(_, _, 0) -> ok;
restart(otp, Counter, N) ->
    gen_server:cast(Counter, crash),
    receive {started, Next} -> gen_server:call(Next, sum), restart(otp, Next, N - 1) end;
restart(process, Counter, N) ->
    Monitor = monitor(process, Counter),
    Counter ! crash,
    receive {'DOWN', Monitor, process, _, _} -> ok end,
    Next = spawn(fun() -> bare(0) end),
    sum(process, Next),
    restart(process, Next, N - 1).

%% ---- many ----

top(Announce) ->
    {ok, Top} = supervisor:start_link(?MODULE, {top, Announce}),
    Top.

stop(Top) ->
    Monitor = monitor(process, Top),
    unlink(Top),
    exit(Top, shutdown),
    receive {'DOWN', Monitor, process, _, _} -> ok end.

start_children(_, 0, _) -> ok;
start_children(Top, N, Ask) ->
    {ok, Counter} = supervisor:start_child(Top, []),
    Ask andalso gen_server:call(Counter, sum),
    start_children(Top, N - 1, Ask).

start_processes(0, Counters) -> Counters;
start_processes(N, Counters) ->
    Counter = spawn(fun() -> bare(0) end),
    sum(process, Counter),
    start_processes(N - 1, [Counter | Counters]).

start_processes_alone(0) -> ok;
start_processes_alone(N) ->
    sum(process, spawn(fun() -> bare(0) end)),
    start_processes_alone(N - 1).

started(0) -> ok;
started(N) -> receive {started, _} -> started(N - 1) end.

%% ---- callbacks ----

counter(Announce) -> gen_server:start_link(?MODULE, {counter, Announce}, []).

init({counter, none}) -> {ok, 0};
init({counter, Announce}) -> Announce ! {started, self()}, {ok, 0};
init({top, Announce}) ->
    Child = #{id => counter, start => {?MODULE, counter, [Announce]}},
    {ok, {#{strategy => simple_one_for_one, intensity => 1000000, period => 1}, [Child]}};
init({level, Depth}) ->
    Workers = [#{id => N, start => {?MODULE, counter, [none]}} || N <- lists:seq(1, ?WORKERS)],
    Next = [#{id => s, start => {supervisor, start_link, [?MODULE, {level, Depth - 1}]}, type => supervisor} || Depth > 1],
    {ok, {#{strategy => one_for_one}, Workers ++ Next}}.

handle_call(sum, _, Sum) -> {reply, Sum, Sum}.

handle_cast({add, N}, Sum) -> {noreply, Sum + N};
handle_cast(crash, _) -> error(boom).
