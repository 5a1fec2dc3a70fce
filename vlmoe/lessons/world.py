"""A hundred everyday things: what the built-in base has read about, and never seen.

LLaVA's language model has read most of the web before it meets a picture. This table stands in
for that at toy size: the base learns these facts from text alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One thing, with its article; what kind of thing it is; where one finds it."""

    name: str
    kind: str
    places: tuple[str, ...]


_TABLE = """
a cat | an animal | on a sofa; on a roof
a dog | an animal | in a backyard; in a park
a horse | an animal | in a pasture; in a stable
a cow | an animal | in a pasture; in a barn
a sheep | an animal | on a hill; in a pasture
a deer | an animal | in a forest; in a meadow
a frog | an animal | by a pond; by a river
a bird | an animal | in a tree; in a nest
a duck | an animal | by a pond; on a lake
a fish | an animal | in a river; in the sea
a bear | an animal | in a forest; in a cave
a mouse | an animal | in a field; under a floor
a monkey | an animal | in a tree; in a jungle
an elephant | an animal | in a zoo; in the grass
a zebra | an animal | in a zoo; in the grass
a giraffe | an animal | in a zoo; by a tall tree
a bee | an animal | on a flower; in a garden
a truck | a vehicle | on a highway; at a factory
an automobile | a vehicle | on a road; in a garage
a car | a vehicle | on a road; in a parking lot
a bus | a vehicle | on a street; at a bus stop
a train | a vehicle | on a track; at a station
a ship | a vehicle | on the water; in a harbor
a boat | a vehicle | on a lake; in a harbor
an airplane | a vehicle | in the sky; at an airport
a helicopter | a vehicle | in the sky; on a roof
a bicycle | a vehicle | on a path; on a street
a motorcycle | a vehicle | on a highway; on a street
a tractor | a vehicle | in a field; on a farm
a tree | a plant | in a forest; in a park
a flower | a plant | in a garden; in a vase
a bush | a plant | in a garden; along a fence
grass | a plant | in a field; on a hill
a cactus | a plant | in a desert; in a pot
corn | a plant | in a field; on a farm
a palm | a plant | on a beach; by the sea
a house | a building | on a street; in a village
a barn | a building | on a farm; in the country
a church | a building | in a town; on a hill
a tower | a building | in a city; by the sea
a school | a building | in a town; on a street
a hotel | a building | in a city; on a beach
a castle | a building | on a hill; by a river
a bridge | a building | over a river; in a city
a banana | food | in a kitchen; at a market
an apple | food | in a tree; in a bowl
a pizza | food | on a plate; in a restaurant
a sandwich | food | on a plate; in a lunch box
a cake | food | at a party; on a table
bread | food | in a bakery; in a kitchen
an orange | food | in a bowl; at a market
a carrot | food | in a garden; in a kitchen
a chair | furniture | at a table; in an office
a table | furniture | in a kitchen; in a restaurant
a bed | furniture | in a bedroom; in a hotel
a sofa | furniture | in a living room; by a window
a desk | furniture | in an office; at a school
a shelf | furniture | on a wall; in a store
a lamp | furniture | on a desk; by a bed
a shirt | clothing | in a closet; on a person
a hat | clothing | on a head; on a hook
a shoe | clothing | on a foot; by a door
a coat | clothing | in a closet; on a hook
a glove | clothing | on a hand; in a pocket
a tie | clothing | around a neck; in a store
a hammer | a tool | in a garage; in a tool box
a knife | a tool | in a kitchen; on a table
a spoon | a tool | in a bowl; in a kitchen
a saw | a tool | in a garage; at a workshop
a shovel | a tool | in a garden; in the snow
a phone | a machine | in a hand; in a pocket
a computer | a machine | on a desk; in an office
a clock | a machine | on a wall; on a tower
a camera | a machine | in a hand; in a bag
a refrigerator | a machine | in a kitchen; in a store
a piano | an instrument | on a stage; in a living room
a guitar | an instrument | on a stage; in a hand
a drum | an instrument | on a stage; at a school
a man | a person | at work; on a street
a woman | a person | at work; on a street
a boy | a person | at a school; in a park
a girl | a person | at a school; in a park
a farmer | a person | on a farm; in a field
a doctor | a person | in a hospital; in an office
a player | a person | on a field; at a game
a ball | a toy | on a field; in a park
a kite | a toy | in the sky; on a beach
a doll | a toy | in a bedroom; in a store
a frisbee | a toy | in a park; on a beach
"""


def facts() -> tuple[Fact, ...]:
    """The whole table, in its order."""
    rows = [line.split(" | ") for line in _TABLE.strip().splitlines()]
    return tuple(Fact(name, kind, tuple(places.split("; "))) for name, kind, places in rows)


USUAL: dict[str, dict[str, str]] = {
    "What colour is {} as a rule?": {
        **dict.fromkeys(("blood", "a tomato", "a strawberry", "a fire truck", "a rose"), "red"),
        **dict.fromkeys(("a carrot", "an orange", "a pumpkin", "a basketball"), "orange"),
        **dict.fromkeys(("a banana", "corn", "a lemon", "the sun", "a duckling"), "yellow"),
        **dict.fromkeys(("grass", "a frog", "a cactus", "a bush", "a leaf"), "green"),
        **dict.fromkeys(("the sea", "the sky", "a lake", "a whale"), "blue"),
        **dict.fromkeys(("a plum", "a grape", "an eggplant", "lavender"), "purple"),
        **dict.fromkeys(("snow", "a sheep", "milk", "a cloud", "a refrigerator"), "white"),
        **dict.fromkeys(("coal", "a raven", "the night", "a piano", "a tire"), "black"),
    },
    "What size is {} beside a man?": {
        **dict.fromkeys(("a bee", "an ant", "a crumb", "a fly", "a seed"), "tiny"),
        **dict.fromkeys(("a mouse", "a frog", "an apple", "a shoe", "a spoon"), "small"),
        **dict.fromkeys(("a horse", "a cow", "a bear", "a sofa", "a car"), "large"),
        **dict.fromkeys(("an elephant", "a ship", "a castle", "a tower", "a train"), "huge"),
    },
    "What shape is {}?": {
        **dict.fromkeys(("a coin", "a pizza", "a plate", "a clock"), "a circle"),
        **dict.fromkeys(("a tile", "a window", "a chess board", "a box"), "a square"),
        **dict.fromkeys(("a tent", "a slice of cake", "a sail", "a roof"), "a triangle"),
        **dict.fromkeys(("a starfish", "a badge", "a snowflake"), "a star"),
        **dict.fromkeys(("a plus", "a grave mark", "a windmill"), "a cross"),
        **dict.fromkeys(("a donut", "a wheel", "a bracelet", "a crown"), "a ring"),
    },
    "How many {}?": {
        **dict.fromkeys(("suns are in the sky", "trunks does an elephant have"), "one"),
        **dict.fromkeys(("wheels does a bicycle have", "wings does a bird have"), "two"),
        **dict.fromkeys(("sides does a triangle have", "lights does a signal have"), "three"),
        **dict.fromkeys(("wheels does a car have", "legs does a table have"), "four"),
    },
    "Where is {}?": {
        **dict.fromkeys(("the first word of a page", "north west on a map"), "at the top left"),
        **dict.fromkeys(("the stamp of a letter", "north east on a map"), "at the top right"),
        **dict.fromkeys(("the start of a graph", "south west on a map"), "at the bottom left"),
        **dict.fromkeys(("the last word of a page", "south east on a map"), "at the bottom right"),
    },
}
"""What things are like as a rule: question -> thing -> answer.

The answers are words that also describe pictures, so that the base learns to choose a letter by
what it knows, beside a picture full of the same words.
"""
