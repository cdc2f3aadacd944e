%% Erlang's distribution as a contestant: the client obeys the same lines as the others (src/contestant.rs), the server counts and answers.
-module(bench_remote).
-export([main/0, init/1, handle_call/3, handle_cast/2]).

-define(SERVER, 'server@127.0.0.1').
-define(PIECE_BYTES, 65536).
-define(MIB, 1048576).

main() ->
    logger:set_primary_config(level, none),
    case init:get_plain_arguments() of
        ["server"] -> spawn(fun() -> run(fun server/0) end);
        ["client"] -> spawn(fun() -> run(fun client/0) end)
    end.

run(Main) ->
    try Main() catch _:Reason:Where -> io:format("error ~0p at ~0p~n", [Reason, Where]), halt(1) end.

%% ---- server ----

server() ->
    register(counter, spawn_link(fun() -> count(0) end)),
    {ok, _} = gen_server:start_link({local, echo}, ?MODULE, [], []),
    io:format("listening~n"),
    until_end().

until_end() ->
    case io:get_line("") of
        eof -> halt(0);
        {error, _} -> halt(1);
        _ -> until_end()
    end.

count(Bytes) ->
    receive
        {blob, Blob} -> count(Bytes + byte_size(Blob));
        {sum, Asker, Ref} -> Asker ! {Ref, Bytes, self()}, count(0)
    end.

init([]) -> {ok, none}.
handle_call({echo, Blob}, _, State) -> {reply, Blob, State}.
handle_cast(_, State) -> {noreply, State}.

%% ---- client ----

client() ->
    true = net_kernel:connect_node(?SERVER),
    {_, Counter} = sum({counter, ?SERVER}),
    loop(Counter, none).

%% What was counted since the last time; after all that was sent before, since messages of one sender stay in order.
sum(Counter) ->
    Ref = make_ref(),
    Counter ! {sum, self(), Ref},
    receive {Ref, Bytes, Pid} -> {Bytes, Pid} end.

loop(Counter, Prepared) ->
    case io:get_line("") of
        eof -> halt(0);
        {error, _} -> halt(1);
        Line ->
            case string:lexemes(string:trim(Line), " ") of
                ["prepare", Operation, Size] ->
                    Round = prepare(Operation, list_to_integer(Size), Counter),
                    io:format("ready~n"),
                    loop(Counter, Round);
                ["go"] ->
                    Begun = erlang:monotonic_time(nanosecond),
                    {Operations, Further} = Prepared(),
                    Wall = erlang:monotonic_time(nanosecond) - Begun,
                    io:format("done ~b ~b~s~n", [Operations, Wall, [[" ", integer_to_list(F)] || F <- Further]]),
                    loop(Counter, none);
                ["clean"] ->
                    io:format("cleaned~n"),
                    loop(Counter, none)
            end
    end.

prepare("tell-" ++ Bytes, N, Counter) ->
    Size = list_to_integer(Bytes),
    Blob = binary:copy(<<7>>, Size),
    fun() ->
        tell(Counter, Blob, N),
        {Counted, _} = sum(Counter),
        Counted = N * Size,
        {N, []}
    end;
prepare("ask-" ++ Callers, Asks, _) ->
    fun() ->
        Self = self(),
        Blob = binary:copy(<<7>>, 64),
        Pids = [spawn_link(fun() -> Self ! {self(), ask(Blob, Asks, [])} end) || _ <- lists:seq(1, list_to_integer(Callers))],
        Latencies = lists:sort(lists:append([receive {Pid, Latencies} -> Latencies end || Pid <- Pids])),
        N = length(Latencies),
        {N, [lists:nth(1 + trunc(N * 0.5), Latencies), lists:nth(1 + trunc(N * 0.99), Latencies)]}
    end;
prepare("body", Mib, Counter) ->
    Piece = binary:copy(<<7>>, ?PIECE_BYTES),
    fun() ->
        tell(Counter, Piece, Mib * ?MIB div ?PIECE_BYTES),
        {Counted, _} = sum(Counter),
        Counted = Mib * ?MIB,
        {Mib, []}
    end.

tell(_, _, 0) -> ok;
tell(Counter, Blob, N) -> Counter ! {blob, Blob}, tell(Counter, Blob, N - 1).

ask(_, 0, Latencies) -> Latencies;
ask(Blob, N, Latencies) ->
    Begun = erlang:monotonic_time(nanosecond),
    Blob = gen_server:call({echo, ?SERVER}, {echo, Blob}, infinity),
    ask(Blob, N - 1, [erlang:monotonic_time(nanosecond) - Begun | Latencies]).
